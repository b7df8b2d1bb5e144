"""
Stop a run and resume it, bit for bit.

``save`` and ``load`` work as in SB3: one zip file holds the weights, the optimizers, the learned model and the step counters.
A checkpoint also holds both buffers, the state of the environment and the state of every random generator, so that the run
continues as if it had never been stopped, in a new process too. The folder always contains a complete checkpoint, even if the
process is killed while it saves.
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
        print(f"resuming at step {model.num_timesteps}")
    else:
        model = MBPO("MlpPolicy", "Pendulum-v1", learning_starts=200, gradient_steps=2, seed=0)
    model.learn(args.timesteps // 2, reset_num_timesteps=False, progress_bar=True)
    model.save_checkpoint(FOLDER)

    resumed = MBPO.load_checkpoint(FOLDER, env="Pendulum-v1")
    resumed.learn(args.timesteps // 2, reset_num_timesteps=False, progress_bar=True)
    print(f"step {resumed.num_timesteps}. If you start this script again, it resumes at step {model.num_timesteps}.")


if __name__ == "__main__":
    main()
