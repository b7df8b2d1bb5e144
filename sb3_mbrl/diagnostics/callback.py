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
"""The model is not checked on fewer real transitions than this."""


class ModelDiagnosticsCallback(BaseCallback):
    """
    Checks the model of a model-based algorithm every ``diag_freq`` environment steps, once the model is fitted. Its errors one
    step ahead and in open loop are measured on the latest real transitions. The current policy has collected them, and the
    model has not been fitted to the last of them yet. Imagined states are compared with real ones, both drawn from their whole
    buffers.

    Scalars are logged under ``diagnostics/`` and written immediately, like those of ``EvalCallback``; figures go to
    TensorBoard. The checks draw from their own generator and do not change training, so a run with the callback ends with the
    same parameters as one without.

    :param diag_freq: environment steps between two checks, counted over all environments
    :param n_rows: number of real transitions to check on, and of imagined ones to compare with
    :param n_steps: steps of the open-loop prediction; fewer as long as all episodes are shorter
    :param figures: whether to draw figures, if there is a TensorBoard logger or a ``log_dir``
    :param log_dir: folder for the figures as PNG files (``open_loop_5000.png`` for step 5000); created if needed
    :param seed: seed of the callback's own generator
    :param verbose: 1 prints a line per check
    :raises ValueError: a number is out of its range; at the start of training, the algorithm has no model or no replay buffer
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
        # Not a modulo, because num_timesteps grows by the number of environments at each step
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
        # A model without ``is_fitted``, such as a simulator, needs no fit
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
                if not np.isnan(value):  # NaN means that there were no data to measure it on
                    self.logger.record(f"diagnostics/{name}", value)
        if self.figures:
            self._draw(one_step, open_loop, states)
        self.logger.record("diagnostics/seconds", time.perf_counter() - start)
        # Written at once: the next check may come before SB3 writes its log, and would overwrite these values
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        if self.verbose >= 1:
            self._print(one_step, open_loop)

    def _compare_states(self) -> StateDistribution | None:
        """None if the algorithm keeps no imagined transitions, or has none yet."""
        model_buffer = getattr(self.model, "model_buffer", None)
        if model_buffer is None or len(model_buffer) == 0:
            return None
        # Next observations are compared, because the start states of imagined rollouts are real
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
            f"Model checked at step {self.num_timesteps}: one-step error {one['one_step_error']:.2g} times that without a "
            f"model, error after {open_loop.n_steps} steps {several['open_loop_last']:.2g} standard deviations of the data"
        )
