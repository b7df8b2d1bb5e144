"""
Compare MBPO with SAC on a MuJoCo task, at the same number of environment steps (``make demo``).

MBPO is trained on InvertedPendulum-v5 until it solves the task (a mean return of 1000) or the steps are used up. SAC is then
trained with its defaults for the same number of steps. The script writes a plot, ``demo/returns.png``, and a TensorBoard log,
``demo/tensorboard``.
"""

import argparse
import pathlib
import time

from matplotlib.figure import Figure
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env

from sb3_mbrl import MBPO
from sb3_mbrl.zoo import load_hyperparams

ENV_ID = "InvertedPendulum-v5"
SOLVED = 1000.0
FOLDER = pathlib.Path("demo")


def evaluation(name: str, stop: BaseCallback | None = None) -> EvalCallback:
    """Evaluates five episodes every 250 steps, in a separate environment; ``stop`` is called at each new best mean."""
    env = make_vec_env(ENV_ID, seed=1_000)
    return EvalCallback(env, stop, eval_freq=250, n_eval_episodes=5, log_path=str(FOLDER / name), verbose=0)


def curve(callback: EvalCallback) -> tuple[list[int], list[float]]:
    """Environment steps and mean returns of the evaluations."""
    returns = [sum(episodes) / len(episodes) for episodes in callback.evaluations_results]
    return callback.evaluations_timesteps, returns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=5_000, help="maximum number of environment steps")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    log = str(FOLDER / "tensorboard")

    mbpo = MBPO(env=ENV_ID, seed=args.seed, tensorboard_log=log, **load_hyperparams("mbpo", ENV_ID))
    mbpo_eval = evaluation("mbpo", StopTrainingOnRewardThreshold(SOLVED, verbose=0))
    start = time.perf_counter()
    mbpo.learn(args.timesteps, callback=mbpo_eval, progress_bar=True)
    seconds = time.perf_counter() - start
    steps = mbpo.num_timesteps
    mbpo.save(FOLDER / "mbpo" / "model")

    sac = SAC("MlpPolicy", ENV_ID, seed=args.seed, tensorboard_log=log)
    sac_eval = evaluation("sac")
    sac.learn(steps, callback=sac_eval, progress_bar=True)

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, callback in (("MBPO", mbpo_eval), ("SAC", sac_eval)):
        axes.plot(*curve(callback), marker="o", label=name)
    axes.set(xlabel="environment steps", ylabel="mean return of 5 episodes", title=ENV_ID)
    axes.legend()
    figure.savefig(FOLDER / "returns.png", dpi=150)

    print(f"{ENV_ID}, mean return of 5 episodes after {steps} environment steps:")
    print(f"  MBPO {mbpo_eval.last_mean_reward:7.1f}   ({seconds:.0f} s of training)")
    print(f"  SAC  {sac_eval.last_mean_reward:7.1f}")
    print(f"Plot: {FOLDER / 'returns.png'}   TensorBoard: tensorboard --logdir {log}")


if __name__ == "__main__":
    main()
