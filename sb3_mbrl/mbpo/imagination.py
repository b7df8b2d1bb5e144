"""Imagined experience: short rollouts of the current policy in the model, branched from real states."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch as th

from sb3_mbrl.acceleration.sac import action_dist_params
from sb3_mbrl.algorithms.forecast import growth
from sb3_mbrl.algorithms.learning import LearnsDynamics
from sb3_mbrl.common.arguments import BOOLEAN, Rule, integer
from sb3_mbrl.common.normalization import normalize_obs
from sb3_mbrl.common.trajectories import initial_rows, trajectories_from_buffer
from sb3_mbrl.common.types import Transitions
from sb3_mbrl.diagnostics.statistics import standard_deviations
from sb3_mbrl.dynamics.rollout_length import AdaptiveRolloutLength, RolloutSchedule
from sb3_mbrl.dynamics.rollouts import RolloutStats, branched_rollouts
from sb3_mbrl.mbpo.buffers import ModelReplayBuffer

MOST_IMAGINED = 10**9
"""Largest number of transitions in the model buffer."""


class Imagines(LearnsDynamics):
    """
    The part of :class:`~sb3_mbrl.mbpo.MBPOMixin` that fills the model buffer. The attributes are arguments of the mixin.
    """

    rollouts_per_step: int
    rollout_schedule: int | Sequence[int] | Mapping[str, Any] | AdaptiveRolloutLength
    model_retain_steps: int
    branch_from: str
    deterministic_rollout: bool
    one_member_per_branch: bool

    _accepted: ClassVar[dict[str, Rule]] = {
        **LearnsDynamics._accepted,
        "rollouts_per_step": integer(1, 10**7),
        "model_retain_steps": integer(1, 10**9),
        "deterministic_rollout": BOOLEAN,
        "one_member_per_branch": BOOLEAN,
    }

    model_buffer: ModelReplayBuffer
    _schedule: RolloutSchedule | AdaptiveRolloutLength
    _adapted_length = 1
    """Length of imagined rollouts if they are adapted to the model's error."""

    def _check_imagination_arguments(self) -> None:
        """:raises ValueError: an argument is not supported"""
        capacity = self._model_buffer_capacity()
        if capacity > MOST_IMAGINED:
            raise ValueError(
                f"rollouts_per_step={self.rollouts_per_step}, model_retain_steps={self.model_retain_steps} and "
                f"rollout_schedule={self.rollout_schedule} make a model buffer of {capacity:_} transitions; at most "
                f"{MOST_IMAGINED:_} are accepted."
            )
        if self.branch_from not in ("all", "initial"):
            raise ValueError(f"branch_from must be 'all' or 'initial', got {self.branch_from!r}.")

    def _setup_imagination(self) -> None:
        """Make the model buffer. Call this after ``_setup_dynamics``."""
        self.model_buffer = ModelReplayBuffer(
            self._model_buffer_capacity(), self.dynamics.observation_dim, self.dynamics.action_dim, self.device
        )

    def _imagine(self, states: th.Tensor) -> None:
        """Branch short rollouts of the current policy from real states into the model buffer (algorithm 2, lines 6-8)."""
        n_branches = self.rollouts_per_step * min(self._steps_since_fit(), self.model_retain_steps)
        length = self._rollout_length(self.num_timesteps)
        self.model_buffer.resize(self._model_buffer_capacity())
        starts = self._start_states(states, n_branches)
        self.policy.set_training_mode(False)
        with self._timed("imagining", f"imagining {n_branches} x {length} steps"):
            stats = branched_rollouts(
                self.dynamics,
                self._sample_imagined_action,
                starts,
                length,
                self.model_buffer.add,
                self._generator,
                self.deterministic_rollout,
                self.one_member_per_branch,
            )
        self._check_imagination(stats)
        self._log_imagination(stats, length, starts[:1024])

    def _check_imagination(self, stats: RolloutStats) -> None:
        if stats.n_transitions == 0:
            raise ValueError(
                f"Not one of {stats.n_branches} imagined transitions is finite. Check "
                + ("the learned model's errors, dynamics/ in the log" if self.reward_fn is None else "what reward_fn returns")
                + ", and the range of observations and rewards."
            )

    def _rollout_length(self, num_timesteps: int) -> int:
        return self._adapted_length if isinstance(self._schedule, AdaptiveRolloutLength) else self._schedule(num_timesteps)

    def _adapt_rollout_length(self, transitions: Transitions) -> None:
        """Choose the length by the model's error on the transitions since its last fit, before it is fitted to them."""
        if not isinstance(self._schedule, AdaptiveRolloutLength) or not self.dynamics.is_fitted:
            return
        assert self.replay_buffer is not None
        latest = trajectories_from_buffer(self.replay_buffer, self.device, self._steps_since_fit())
        scale = standard_deviations(transitions)
        errors = self._schedule.errors(self.dynamics, latest, self._generator, scale)
        self._adapted_length = self._schedule.choose(errors)
        self._log({"imagination/first_error": float(errors[0]), "imagination/last_error": float(errors[-1])})

    def _start_states(self, states: th.Tensor, n: int) -> th.Tensor:
        """Draw real states to branch from uniformly, raw observations (n, O)."""
        if self.branch_from == "initial":
            assert self.replay_buffer is not None
            initial = initial_rows(self.replay_buffer)
            states = states[th.as_tensor(initial, device=self.device)] if len(initial) > 0 else states
        return states[th.randint(len(states), (n,), generator=self._generator, device=self.device)]

    def _sample_imagined_action(self, obs: th.Tensor) -> th.Tensor:
        """
        Draw actions of a squashed Gaussian policy from the model's own stream. With gSDE, each row has the same distribution
        as if it had its own noise matrix.

        :param obs: raw observations, (B, O)
        :return: actions in [-1, 1], (B, A)
        """
        actor: Any = self.actor
        params = action_dist_params(actor, normalize_obs(obs, self._vec_normalize_env))
        normal = actor.action_dist.proba_distribution(*params[:2], **params[2]).distribution
        noise = th.randn(normal.mean.shape, generator=self._generator, device=self.device)
        return th.tanh(normal.mean + normal.stddev * noise)

    def _steps_since_fit(self) -> int:
        # If nothing has been imagined yet, as after load, the next call of train fits and imagines for a whole interval
        return super()._steps_since_fit() if len(self.model_buffer) > 0 else self.model_train_freq

    def _model_buffer_capacity(self) -> int:
        return self.rollouts_per_step * self.model_retain_steps * self._rollout_length(self.num_timesteps)

    def _growth(self, phase: str, begin: int, total_timesteps: int) -> float:
        if phase == "imagining":  # the measured round contains one imagination, of the present length
            return growth(self._rollout_length, self.num_timesteps, self.num_timesteps, total_timesteps)
        return super()._growth(phase, begin, total_timesteps)

    def _log_imagination(self, stats: RolloutStats, length: int, starts: th.Tensor) -> None:
        with th.no_grad():
            step = self.dynamics.step(starts, self._sample_imagined_action(starts), self._generator, uncertainty=True)
        assert step.epistemic_std is not None and step.aleatoric_std is not None
        assert self.replay_buffer is not None
        n_real = self.replay_buffer.size()
        self._log(
            {
                "dynamics/epistemic_std": step.epistemic_std.mean().item(),
                "dynamics/aleatoric_std": step.aleatoric_std.mean().item(),
                "imagination/rollout_length": length,
                "imagination/n_transitions": stats.n_transitions,
                "imagination/termination_fraction": stats.n_terminated / stats.n_branches,
                "imagination/diverged_fraction": stats.n_diverged / stats.n_branches,
                "imagination/reward_mean": stats.reward_sum / max(stats.n_transitions, 1),
                "imagination/real_reward_mean": float(self.replay_buffer.rewards[:n_real].mean()),
                "imagination/model_buffer_size": len(self.model_buffer),
                "imagination/real_buffer_size": n_real * self.n_envs,
            }
        )

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "model_buffer", "_schedule"]

    def _checkpoint_extras(self) -> dict[str, Any]:
        return {**super()._checkpoint_extras(), "model_buffer": self.model_buffer.state_dict()}

    def _restore_checkpoint_extras(self, extras: dict[str, Any]) -> None:
        super()._restore_checkpoint_extras(extras)
        self.model_buffer.load_state_dict(extras["model_buffer"])
