"""A callback that checks the learned model while an algorithm trains."""

import os
import pathlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure, TensorBoardOutputFormat

from sb3_mbrl.common.arguments import BOOLEAN, OFF_POLICY, check_arguments, integer
from sb3_mbrl.common.trajectories import concatenate, trajectories_from_buffer
from sb3_mbrl.diagnostics.figures import plot_one_step, plot_open_loop, plot_state_distribution
from sb3_mbrl.diagnostics.one_step import OneStepError, one_step_error
from sb3_mbrl.diagnostics.open_loop import OpenLoopError, open_loop_error
from sb3_mbrl.diagnostics.state_distribution import StateDistribution, state_distribution

if TYPE_CHECKING:
    import matplotlib.figure

MIN_ROWS = 32
"""Fewer real transitions than this are too few to check a model on."""


class ModelDiagnosticsCallback(BaseCallback):
    """
    Checks the model of a model-based algorithm every ``diag_freq`` environment steps, as soon as the model is fitted. Its
    error one step ahead and in open loop is measured on the latest real transitions, which the current policy has visited
    and the last of which the model has not seen. Imagined states are compared with real ones, both drawn from the whole of
    their buffers.

    Scalars go under ``diagnostics/``, and are written at once, like those of ``EvalCallback``; figures go to TensorBoard.
    Training is not disturbed: the checks draw from their own generator and change nothing, so a run with the callback ends
    with the same parameters as one without.

    :param diag_freq: environment steps between two checks, counted over all environments
    :param n_rows: real transitions to check on, and imagined ones to compare with
    :param n_steps: steps of the open-loop prediction; fewer while no episode is as long
    :param figures: whether to draw figures for TensorBoard and ``log_dir``; nothing is drawn without either
    :param log_dir: folder for the figures as PNG files (``open_loop_5000.png`` for step 5000); created if needed
    :param seed: seed of the callback's own generator
    :param verbose: 1 prints a line per check
    :raises ValueError: a number out of its range; at the start of training, an algorithm without a model or a replay buffer
    """

    def __init__(
        self,
        diag_freq: int = 1_000,
        n_rows: int = 1_000,
        n_steps: int = 20,
        figures: bool = True,
        log_dir: str | os.PathLike[str] | None = None,
        seed: int = 0,
        verbose: int = 0,
    ):
        accepted = {
            "diag_freq": integer(1),
            "n_rows": integer(1, 10**7),
            "n_steps": integer(1, 10**4),
            "figures": BOOLEAN,
            "seed": integer(0),
            "verbose": OFF_POLICY["verbose"],
        }
        check_arguments(locals(), accepted)
        super().__init__(verbose)
        self.diag_freq = diag_freq
        self.n_rows = n_rows
        self.n_steps = n_steps
        self.figures = figures
        self.log_dir = None if log_dir is None else pathlib.Path(log_dir)
        self.seed = seed
        self._last_timestep: int | None = None

    def init_callback(self, model: BaseAlgorithm) -> None:
        for attribute, meaning in (("dynamics", "learned model"), ("replay_buffer", "replay buffer")):
            if getattr(model, attribute, None) is None:
                raise ValueError(
                    f"ModelDiagnosticsCallback needs a model-based algorithm, such as MBPO: {type(model).__name__} has no "
                    f".{attribute} ({meaning})."
                )
        super().init_callback(model)

    def _init_callback(self) -> None:
        self._generator = th.Generator(device=self.model.device)
        self._generator.manual_seed(self.seed)
        if self.log_dir is not None:
            self.log_dir.mkdir(parents=True, exist_ok=True)

    def _on_training_start(self) -> None:
        # learn() may have set num_timesteps back to 0
        if self._last_timestep is None or self.num_timesteps < self._last_timestep:
            self._last_timestep = self.num_timesteps

    def _on_step(self) -> bool:
        assert self._last_timestep is not None
        # A stored clock, not a modulo: num_timesteps jumps by the number of environments
        if self.num_timesteps - self._last_timestep >= self.diag_freq and self._is_ready():
            self._last_timestep = self.num_timesteps
            self._check()
        return True

    @property
    def _dynamics(self) -> Any:
        return self.model.dynamics  # type: ignore[attr-defined]

    @property
    def _replay_buffer(self) -> ReplayBuffer:
        return self.model.replay_buffer  # type: ignore[attr-defined]

    def _is_ready(self) -> bool:
        # A simulator is a model that needs no fit
        fitted = getattr(self._dynamics, "is_fitted", True)
        return fitted and self._replay_buffer.size() * self._replay_buffer.n_envs >= MIN_ROWS

    def _check(self) -> None:
        start = time.perf_counter()
        trajectories = trajectories_from_buffer(self._replay_buffer, self.model.device, self.n_rows)
        n_steps = min(self.n_steps, max(len(trajectory) for trajectory in trajectories))
        one_step = one_step_error(self._dynamics, concatenate(trajectories))
        open_loop = open_loop_error(self._dynamics, trajectories, n_steps, generator=self._generator)
        states = self._compare_states()
        for result in (one_step, open_loop, states):
            for name, value in {} if result is None else result.summary().items():
                if not np.isnan(value):  # NaN: there is nothing to measure it on
                    self.logger.record(f"diagnostics/{name}", value)
        if self.figures:
            self._draw(one_step, open_loop, states)
        self.logger.record("diagnostics/seconds", time.perf_counter() - start)
        # Written now, at this time step: the next check may come before SB3 writes, and would overwrite the values
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        if self.verbose >= 1:
            self._print(one_step, open_loop)

    def _compare_states(self) -> StateDistribution | None:
        """None if the algorithm keeps no imagined transitions, or has none yet."""
        model_buffer = getattr(self.model, "model_buffer", None)
        if model_buffer is None or len(model_buffer) == 0:
            return None
        # Next observations on both sides: imagined rollouts start from real states, which would agree with themselves
        buffer = self._replay_buffer
        real = buffer.next_observations[: buffer.size()].reshape(buffer.size() * buffer.n_envs, -1)
        rows = th.randint(len(real), (self.n_rows,), generator=self._generator, device=self._generator.device).cpu().numpy()
        imagined = model_buffer.sample(self.n_rows, self._generator).next_observations
        return state_distribution(real[rows], imagined, observed_range=(real.min(axis=0), real.max(axis=0)))

    def _draw(self, one_step: OneStepError, open_loop: OpenLoopError, states: StateDistribution | None) -> None:
        to_tensorboard = any(isinstance(output, TensorBoardOutputFormat) for output in self.logger.output_formats)
        if not to_tensorboard and self.log_dir is None:
            return
        figures: dict[str, matplotlib.figure.Figure] = {
            "one_step": plot_one_step(one_step),
            "open_loop": plot_open_loop(open_loop),
        }
        if states is not None:
            figures["state_distribution"] = plot_state_distribution(states)
        for name, figure in figures.items():
            if self.log_dir is not None:
                figure.savefig(self.log_dir / f"{name}_{self.num_timesteps}.png", dpi=100)
            excluded = ("stdout", "log", "json", "csv")
            self.logger.record(f"diagnostics/{name}", Figure(figure, close=True), exclude=excluded)

    def _print(self, one_step: OneStepError, open_loop: OpenLoopError) -> None:
        one, several = one_step.summary(), open_loop.summary()
        print(
            f"Model checked at step {self.num_timesteps}: one-step error {one['one_step_error']:.2g} of that without a model, "
            f"error after {open_loop.n_steps} steps {several['open_loop_last']:.2g} std of the data"
        )
