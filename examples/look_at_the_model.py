"""
Check in three ways whether the learned model is any good. The checks run while MBPO trains (their results are logged to
TensorBoard and saved as PNG files) and again afterwards, on episodes that the model has never seen. The figures are saved to
``model_checks/``.
"""

import argparse
from pathlib import Path

import torch as th

from sb3_mbrl.callbacks import ModelDiagnosticsCallback
from sb3_mbrl.common.collection import collect_trajectories
from sb3_mbrl.common.trajectories import concatenate, real_transitions
from sb3_mbrl.diagnostics.figures import plot_one_step, plot_open_loop, plot_state_distribution
from sb3_mbrl.diagnostics.one_step import one_step_error
from sb3_mbrl.diagnostics.open_loop import open_loop_error
from sb3_mbrl.diagnostics.state_distribution import state_distribution
from sb3_mbrl.mbpo import MBPO

NAMES = ["cos(angle)", "sin(angle)", "velocity"]

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--timesteps", type=int, default=3_000)
timesteps = parser.parse_args().timesteps

folder = Path("model_checks")
model = MBPO("MlpPolicy", "Pendulum-v1", learning_starts=min(500, timesteps // 2), gradient_steps=5, seed=0)
checks = ModelDiagnosticsCallback(diag_freq=max(250, timesteps // 4), log_dir=folder, verbose=1)
model.learn(timesteps, callback=checks, progress_bar=True)

# New episodes of the trained policy
env = model.get_env()
assert env is not None
trajectories = collect_trajectories(env, model.predict, n_steps=1_000, device=model.device)
real = concatenate(trajectories)
one_step = one_step_error(model.dynamics, real)
open_loop = open_loop_error(model.dynamics, trajectories, n_steps=20, generator=th.Generator(model.device).manual_seed(0))
# Imagined rollouts start from all states since the beginning of the run, not only from these episodes
assert model.replay_buffer is not None
past = real_transitions(model.replay_buffer, model.device)
states = state_distribution(past.next_observations, model.model_buffer.contents().next_observations)

print(f"\n{'':12} {'RMSE':>8} {'/ no model':>10} {'R²':>6} {'in 50 %':>8} {'in 90 %':>8} {'20 steps':>9} {'KS':>6}")
for i, name in enumerate([*NAMES, "reward"]):
    columns = (one_step.rmse, one_step.relative, one_step.r2, one_step.coverage_50, one_step.coverage_90)
    rmse, relative, r2, half, most = (column[i].item() for column in columns)
    last, ks = open_loop.expectation[-1, i].item(), f"{states.ks[i].item():6.2f}" if i < len(NAMES) else ""
    print(f"{name:12} {rmse:8.4f} {relative:10.3f} {r2:6.3f} {half:8.0%} {most:8.0%} {last:9.3f} {ks}")
print(f"{states.outside_any:.1%} of the imagined states lie outside the range observed.")

plot_one_step(one_step, NAMES).savefig(folder / "one_step.png")
plot_open_loop(open_loop, NAMES).savefig(folder / "open_loop.png")
plot_state_distribution(states, NAMES).savefig(folder / "state_distribution.png")
print(f"The figures are in {folder}/.")
