"""The model-based half of MBPO: it makes an off-policy algorithm of Stable-Baselines3 learn from imagined transitions."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer

from sb3_mbrl.acceleration.sac import action_dist_params
from sb3_mbrl.algorithms.forecast import growth
from sb3_mbrl.algorithms.learning import LearnsDynamics
from sb3_mbrl.common.actions import for_sb3, from_sb3
from sb3_mbrl.common.arguments import BOOLEAN, SHARE, Rule, integer
from sb3_mbrl.common.normalization import normalize_obs
from sb3_mbrl.common.signatures import constructor_signature, with_defaults
from sb3_mbrl.common.spaces import check_spaces
from sb3_mbrl.common.trajectories import initial_rows, real_transitions, trajectories_from_buffer
from sb3_mbrl.common.types import RewardFn, TerminationFn, Transitions
from sb3_mbrl.diagnostics.statistics import standard_deviations
from sb3_mbrl.dynamics.rollout_length import AdaptiveRolloutLength, make_schedule
from sb3_mbrl.dynamics.rollouts import RolloutStats, branched_rollouts
from sb3_mbrl.mbpo.buffers import MixedReplayBuffer, ModelReplayBuffer

MOST_BATCHES = 100
"""Drawn at once: a few megabytes."""

MOST_IMAGINED = 10**9
"""Largest number of transitions in the model buffer."""


class MBPOMixin(LearnsDynamics):
    """
    Before an off-policy algorithm of SB3, sb3-contrib or yours in the list of bases, it fits an ensemble to the replay buffer,
    branches short rollouts of the current policy from real states, and lets the algorithm's unchanged ``train`` sample from
    both kinds of transitions (Janner et al. 2019, algorithm 2)::

        class MBTQC(MBPOMixin, TQC): ...

    The algorithm has an ``actor`` for Box actions; one that is no squashed Gaussian overrides :meth:`_sample_imagined_action`.

    The algorithm's own arguments come first, with the defaults of :attr:`own_defaults`; ``model_train_freq`` and the others
    are keywords, explained in :class:`~sb3_mbrl.MBPO`. ``inspect.signature`` and ``help`` show them all.

    :param args: the algorithm's own arguments
    :param kwargs: the algorithm's own arguments
    :raises TypeError: neither the algorithm nor this class has an argument of that name
    :raises ValueError: arguments or spaces that are not supported, saying what is
    """

    _accepted: ClassVar[dict[str, Rule]] = {
        **LearnsDynamics._accepted,
        "rollouts_per_step": integer(1, 10**7),
        "model_retain_steps": integer(1, 10**9),
        "real_ratio": SHARE,
        "deterministic_rollout": BOOLEAN,
        "one_member_per_branch": BOOLEAN,
    }

    own_defaults: ClassVar[dict[str, Any]] = {"learning_starts": 1_000, "gradient_steps": 20}
    """Defaults of the algorithm's arguments: a model needs more data at first, and then allows more updates."""

    model_buffer: ModelReplayBuffer

    __signature__: ClassVar[inspect.Signature]
    _signature_of_the_algorithm: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        cls.__signature__ = with_defaults(constructor_signature(cls.__mro__), cls.own_defaults)
        below = cls.__mro__[cls.__mro__.index(MBPOMixin) + 1 :]
        cls._signature_of_the_algorithm = constructor_signature(below)

    def __init__(
        self,
        *args: Any,
        model_train_freq: int = 250,
        model_updates_per_step: float | None = 2.0,
        rollouts_per_step: int = 400,
        rollout_schedule: int | Sequence[int] | Mapping[str, Any] | AdaptiveRolloutLength = 1,
        model_retain_steps: int = 1_000,
        real_ratio: float = 0.05,
        branch_from: str = "all",
        deterministic_rollout: bool = False,
        one_member_per_branch: bool = False,
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | str | None = "auto",
        dynamics_kwargs: Mapping[str, Any] | None = None,
        fit_kwargs: Mapping[str, Any] | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        super().__init__(*args, **self._with_own_defaults(args, kwargs), _init_setup_model=False)  # type: ignore[call-arg]
        self._store_dynamics_arguments(
            model_train_freq, model_updates_per_step, reward_fn, termination_fn, dynamics_kwargs, fit_kwargs
        )
        self.rollouts_per_step = rollouts_per_step
        self.rollout_schedule = rollout_schedule
        self.model_retain_steps = model_retain_steps
        self.real_ratio = real_ratio
        self.branch_from = branch_from
        self.deterministic_rollout = deterministic_rollout
        self.one_member_per_branch = one_member_per_branch
        self._adapted_length = 1  # of imagined rollouts, where no schedule sets it

        if _init_setup_model:
            self._setup_model()

    def _with_own_defaults(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """
        :param args: positional arguments of the algorithm
        :param kwargs: keyword arguments of the algorithm
        :return: the keyword arguments, with those of :attr:`own_defaults` that were not given
        :raises TypeError: the algorithm has no such arguments
        """
        signature = self._signature_of_the_algorithm
        try:
            given = signature.bind_partial(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}.__init__() {error}") from None
        missing = [name for name in self.own_defaults if name in signature.parameters and name not in given]
        return {**kwargs, **{name: self.own_defaults[name] for name in missing}}

    # ---------------------------------------------------------------- setup

    def _setup_model(self) -> None:
        self._check_common_arguments()
        self._schedule = make_schedule(self.rollout_schedule)
        self._check_arguments()
        if self.n_steps > 1 and self.replay_buffer_class is NStepReplayBuffer:
            # SB3's own choice, read from a zip: SB3 would take it for the user's and warn that n_steps is ignored
            self.replay_buffer_class = None
        super()._setup_model()
        self.policy.action_space = for_sb3(self.action_space)  # it subtracts bounds in the type of the space
        self._setup_dynamics()
        self.model_buffer = ModelReplayBuffer(
            self._model_buffer_capacity(), self.dynamics.observation_dim, self.dynamics.action_dim, self.device
        )

    def _check_arguments(self) -> None:
        self._check_spaces(self.observation_space, self.action_space)
        self._check_dynamics_arguments()
        if self.real_ratio > 0 and int(self.batch_size * self.real_ratio) == 0:
            raise ValueError(
                f"batch_size={self.batch_size} at real_ratio={self.real_ratio} leaves no real transition in a batch. Use "
                f"batch_size >= {int(np.ceil(1 / self.real_ratio))}, a larger real_ratio, or real_ratio=0 to train on "
                "imagined transitions alone."
            )
        capacity = self._model_buffer_capacity()
        if capacity > MOST_IMAGINED:
            raise ValueError(
                f"rollouts_per_step={self.rollouts_per_step}, model_retain_steps={self.model_retain_steps} and "
                f"rollout_schedule={self.rollout_schedule} make a model buffer of {capacity:_} transitions; at most "
                f"{MOST_IMAGINED:_} are accepted."
            )
        if self.branch_from not in ("all", "initial"):
            raise ValueError(f"branch_from must be 'all' or 'initial', got {self.branch_from!r}.")

    @staticmethod
    def _check_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
        check_spaces(observation_space, action_space)
        if not isinstance(action_space, spaces.Box):
            raise ValueError(
                f"Model-based actor-critics support Box actions, got {action_space}. PETS plans with discrete ones."
            )

    # ---------------------------------------------------------------- the algorithm

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        actions, state = super().predict(observation, state, episode_start, deterministic)
        return from_sb3(actions, self.action_space), state

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        Refit the model and imagine if it is time, then the algorithm's updates on batches of real and imagined transitions.

        :param gradient_steps: number of updates
        :param batch_size: rows per update
        """
        if self._fit_is_due():
            assert self.replay_buffer is not None
            transitions = real_transitions(self.replay_buffer, self.device)
            self._adapt_rollout_length(transitions)
            self._fit_dynamics(transitions)
            self._imagine(transitions.observations)
            self._last_fit_timestep = self.num_timesteps
        # While nothing has been imagined, all batches are real
        with self._timed("updating"), self._mixed_batches(gradient_steps):
            self._update(gradient_steps, batch_size)

    def _update(self, gradient_steps: int, batch_size: int) -> None:
        """The algorithm's own updates."""
        super().train(gradient_steps, batch_size)

    def _steps_since_fit(self) -> int:
        # If nothing was imagined yet, as after load, the next train makes up for a whole interval
        return super()._steps_since_fit() if len(self.model_buffer) > 0 else self.model_train_freq

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
                f"Not one of {stats.n_branches} imagined transitions is finite. Look at "
                + ("the learned model's errors, dynamics/ in the log" if self.reward_fn is None else "what reward_fn returns")
                + ", and at the range of observations and rewards."
            )

    def _rollout_length(self, num_timesteps: int) -> int:
        return self._adapted_length if isinstance(self._schedule, AdaptiveRolloutLength) else self._schedule(num_timesteps)

    def _adapt_rollout_length(self, transitions: Transitions) -> None:
        """By the model's error on what came in since it was fitted, which it will have been fitted to in a moment."""
        if not isinstance(self._schedule, AdaptiveRolloutLength) or not self.dynamics.is_fitted:
            return
        assert self.replay_buffer is not None
        latest = trajectories_from_buffer(self.replay_buffer, self.device, self._steps_since_fit())
        scale = standard_deviations(transitions)
        errors = self._schedule.errors(self.dynamics, latest, self._generator, scale)
        self._adapted_length = self._schedule.choose(errors)
        self._log({"imagination/first_error": float(errors[0]), "imagination/last_error": float(errors[-1])})

    def _start_states(self, states: th.Tensor, n: int) -> th.Tensor:
        """Real states to branch from, uniformly, (n, O) raw."""
        if self.branch_from == "initial":
            assert self.replay_buffer is not None
            initial = initial_rows(self.replay_buffer)
            states = states[th.as_tensor(initial, device=self.device)] if len(initial) > 0 else states
        return states[th.randint(len(states), (n,), generator=self._generator, device=self.device)]

    def _sample_imagined_action(self, obs: th.Tensor) -> th.Tensor:
        """
        A squashed Gaussian policy on raw observations, drawn from the model's own stream. With gSDE each row has its own noise
        matrix, whose marginal this is.
        """
        actor: Any = self.actor
        params = action_dist_params(actor, normalize_obs(obs, self._vec_normalize_env))
        normal = actor.action_dist.proba_distribution(*params[:2], **params[2]).distribution
        noise = th.randn(normal.mean.shape, generator=self._generator, device=self.device)
        return th.tanh(normal.mean + normal.stddev * noise)

    @contextmanager
    def _mixed_batches(self, n: int) -> Iterator[None]:
        """The unchanged ``train`` samples from the real and the model buffer together."""
        real = self.replay_buffer
        assert real is not None
        self.replay_buffer = MixedReplayBuffer(  # type: ignore[assignment]
            real, self.model_buffer, self.real_ratio, self.gamma, self._generator, n_batches=min(n, MOST_BATCHES)
        )
        try:
            yield
        finally:
            self.replay_buffer = real

    def _model_buffer_capacity(self) -> int:
        return self.rollouts_per_step * self.model_retain_steps * self._rollout_length(self.num_timesteps)

    # ---------------------------------------------------------------- learn

    def _growth(self, phase: str, begin: int, total_timesteps: int) -> float:
        if phase == "imagining":  # the round ended with an imagination of the present length
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

    # ---------------------------------------------------------------- save and load

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "model_buffer", "_schedule"]

    def _checkpoint_extras(self) -> dict[str, Any]:
        buffer = self.model_buffer
        return {
            **super()._checkpoint_extras(),
            "imagined": buffer.rows[: len(buffer)].clone(),  # a view would be saved with the rows that are not written yet
            "capacity": buffer.capacity,
            "pos": buffer.pos,
            "full": buffer.full,
        }

    def _restore_checkpoint_extras(self, extras: dict[str, Any]) -> None:
        super()._restore_checkpoint_extras(extras)
        buffer = self.model_buffer
        buffer.resize(extras["capacity"])
        if len(extras["imagined"]) > 0:
            buffer.rows = extras["imagined"].new_empty(buffer.capacity, extras["imagined"].shape[1])
            buffer.rows[: len(extras["imagined"])] = extras["imagined"]
        buffer.pos, buffer.full = extras["pos"], extras["full"]
