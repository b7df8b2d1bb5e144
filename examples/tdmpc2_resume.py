"""
Stop TD-MPC2 and resume it, bit for bit.

A callback saves checkpoints during training. They hold the networks, the optimizers, the replay buffer, the current plans, the
environments and the random generators. After a crash, start the script again, and it resumes from the last checkpoint.
"""

import argparse
import pathlib

from sb3_mbrl import TDMPC2
from sb3_mbrl.callbacks import ExactCheckpointCallback

FOLDER = pathlib.Path("tdmpc2_checkpoint")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=3_000)
    args = parser.parse_args()

    if FOLDER.exists():
        model = TDMPC2.load_checkpoint(FOLDER, env="Pendulum-v1")
        print(f"resuming at step {model.num_timesteps}")
    else:
        starts = min(1_000, args.timesteps // 2)
        model = TDMPC2("MlpPolicy", "Pendulum-v1", learning_starts=starts, pretrain_steps=starts // 2, seed=0)
    remaining = args.timesteps - model.num_timesteps
    if remaining > 0:
        callback = ExactCheckpointCallback(save_freq=max(args.timesteps // 4, 1), folder=FOLDER)
        model.learn(remaining, callback=callback, reset_num_timesteps=False, progress_bar=True)
    print(f"step {model.num_timesteps}, {model._n_updates} updates")


if __name__ == "__main__":
    main()
