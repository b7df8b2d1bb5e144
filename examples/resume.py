"""
Stop and go on, bit for bit.

``save`` and ``load`` are SB3's: weights, optimisers, model and clocks in one zip. A checkpoint carries everything else as
well, both buffers, the state of the environment and of every generator, so that the run goes on as if it had never been
stopped, in a new process too. The folder always holds a whole checkpoint, whenever the process is killed.
"""

import argparse
import pathlib

from sb3_mbrl import MBPO

FOLDER = pathlib.Path("mbpo_checkpoint")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=2_000)
    args = parser.parse_args()

    if FOLDER.exists():
        model = MBPO.load_checkpoint(FOLDER, env="Pendulum-v1")
        print(f"going on at step {model.num_timesteps}")
    else:
        model = MBPO("MlpPolicy", "Pendulum-v1", learning_starts=200, gradient_steps=2, seed=0)
    model.learn(args.timesteps // 2, reset_num_timesteps=False, progress_bar=True)
    model.save_checkpoint(FOLDER)

    resumed = MBPO.load_checkpoint(FOLDER, env="Pendulum-v1")
    resumed.learn(args.timesteps // 2, reset_num_timesteps=False, progress_bar=True)
    print(f"step {resumed.num_timesteps}: start this script again, and it goes on from step {model.num_timesteps}")


if __name__ == "__main__":
    main()
