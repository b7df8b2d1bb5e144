"""
How many seconds does an environment step of MBPO take on Hopper-v5?

Hyperparameters are those of the zoo, which are the paper's except for the budget of the fits. With ``--published-fits``, the
fits follow the paper's rule as well.

    python -m benchmarks.step_cost --random-steps 5000 --steps 1000 --threads 2

Prints the same JSON as ``benchmarks/peers.py`` does for mbrl-lib; run both in one session, in the same order, and quote the
ratio. The time of the random steps does not count; that of the first fit does.
"""

import argparse
import json
import resource
import time

import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_mbrl import MBPO
from sb3_mbrl.zoo import load_hyperparams


class Clock(BaseCallback):
    """Starts to measure time when the random steps are over."""

    def __init__(self, random_steps: int):
        super().__init__()
        self.random_steps = random_steps

    def _on_step(self) -> bool:
        if self.num_timesteps == self.random_steps + 1:
            self.wall, self.cpu = time.perf_counter(), time.process_time()
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Hopper-v5")
    parser.add_argument("--random-steps", type=int, default=5_000)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--published-fits", action="store_true", help="fit by the published stopping rule, without a budget")
    args = parser.parse_args()
    th.set_num_threads(args.threads)

    tuned = {**load_hyperparams("mbpo", args.env), "learning_starts": args.random_steps}
    if args.published_fits:
        tuned |= {"model_updates_per_step": None, "fit_kwargs": {"patience_steps": 0}}
    model, clock = MBPO(env=args.env, seed=args.seed, device="cpu", **tuned), Clock(args.random_steps)
    model.learn(args.random_steps + args.steps, callback=clock, log_interval=1_000_000)
    wall = time.perf_counter() - clock.wall
    print(
        json.dumps(
            {
                "library": "sb3_mbrl",
                "steps": args.steps,
                "seconds": round(wall, 3),
                "seconds_per_step": round(wall / args.steps, 4),
                "cpu_seconds_per_step": round((time.process_time() - clock.cpu) / args.steps, 4),
                **{f"{phase}_seconds": round(seconds, 1) for phase, seconds in model._seconds.items()},
                "sac_updates": model._n_updates,
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "threads": args.threads,
            }
        )
    )


if __name__ == "__main__":
    main()
