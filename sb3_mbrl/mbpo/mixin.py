"""The model-based half of MBPO: it makes an off-policy algorithm of Stable-Baselines3 learn from imagined transitions."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer

from sb3_mbrl.common.actions import for_sb3, from_sb3
from sb3_mbrl.common.arguments import SHARE, Rule
from sb3_mbrl.common.signatures import constructor_signature, with_defaults
from sb3_mbrl.common.spaces import check_spaces
from sb3_mbrl.common.trajectories import real_transitions
from sb3_mbrl.common.types import RewardFn, TerminationFn
from sb3_mbrl.dynamics.rollout_length import AdaptiveRolloutLength, make_schedule
from sb3_mbrl.mbpo.buffers import MixedReplayBuffer
from sb3_mbrl.mbpo.imagination import Imagines

MOST_BATCHES = 100
"""Largest number of batches that are drawn at once; they take a few megabytes."""


class MBPOMixin(Imagines):
    """
    Mixin: list it before an off-policy algorithm of SB3, sb3-contrib or yours. It fits an ensemble to the replay buffer,
    branches short rollouts of the current policy from real states, and lets the algorithm's unchanged ``train`` sample from
    both kinds of transitions (Janner et al. 2019, algorithm 2)::

        class MBTQC(MBPOMixin, TQC): ...

    The algorithm needs an ``actor`` for Box actions. If that is not a squashed Gaussian policy, override
    :meth:`_sample_imagined_action`.

    The algorithm's own arguments come first, with the defaults of :attr:`own_defaults`. The keyword arguments from
    ``model_train_freq`` on are explained in :class:`~sb3_mbrl.MBPO`. ``inspect.signature`` and ``help`` show both.

    :param args: arguments of the algorithm
    :param kwargs: arguments of the algorithm
    :raises TypeError: neither the algorithm nor this class has an argument of that name
    :raises ValueError: an argument or a space is not supported; the message says what is
    """

    _accepted: ClassVar[dict[str, Rule]] = {
        **Imagines._accepted,
        "real_ratio": SHARE,
    }

    own_defaults: ClassVar[dict[str, Any]] = {"learning_starts": 1_000, "gradient_steps": 20}
    """
    Other defaults for the algorithm's arguments, because a model needs more data at first, and then allows more updates. They
    apply to arguments that no constructor above the algorithm names.
    """

    __signature__: ClassVar[inspect.Signature]
    _signature_of_the_algorithm: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        mixin = cls.__mro__.index(MBPOMixin)
        above = [vars(each)["__init__"] for each in cls.__mro__[:mixin] if "__init__" in vars(each)]
        named = {name for constructor in above for name in inspect.signature(constructor).parameters}
        without_effect = named & vars(cls).get("own_defaults", {}).keys()
        if without_effect:
            raise TypeError(
                f"{cls.__name__}.own_defaults has no effect on {sorted(without_effect)}, which a constructor above the "
                f"algorithm names with a default of its own. Override {cls.__name__}.__init__ instead."
            )
        defaults = {name: value for name, value in cls.own_defaults.items() if name not in named}
        cls.__signature__ = with_defaults(constructor_signature(cls.__mro__), defaults)
        cls._signature_of_the_algorithm = constructor_signature(cls.__mro__[mixin + 1 :])

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

    def _setup_model(self) -> None:
        self._check_common_arguments()
        self._schedule = make_schedule(self.rollout_schedule)
        self._check_arguments()
        if self.n_steps > 1 and self.replay_buffer_class is NStepReplayBuffer:
            # SB3 chose this class, and a zip restored it. SB3 would take it for the user's, and warn that n_steps is ignored
            self.replay_buffer_class = None
        super()._setup_model()
        self.policy.action_space = for_sb3(self.action_space)  # SB3's scaling of actions may overflow in an integer space
        self._setup_dynamics()
        self._setup_imagination()

    def _check_arguments(self) -> None:
        self._check_spaces(self.observation_space, self.action_space)
        self._check_dynamics_arguments()
        self._check_imagination_arguments()
        if self.real_ratio > 0 and int(self.batch_size * self.real_ratio) == 0:
            raise ValueError(
                f"batch_size={self.batch_size} at real_ratio={self.real_ratio} leaves no real transition in a batch. Use "
                f"batch_size >= {int(np.ceil(1 / self.real_ratio))}, a larger real_ratio, or real_ratio=0 to train on "
                "imagined transitions alone."
            )

    @staticmethod
    def _check_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
        check_spaces(observation_space, action_space)
        if not isinstance(action_space, spaces.Box):
            raise ValueError(
                f"Model-based actor-critics support Box actions, got {action_space}. PETS plans with discrete ones."
            )

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
        Refit the model and imagine if a fit is due, then update the policy on batches of real and imagined transitions.

        :param gradient_steps: number of updates
        :param batch_size: transitions per update
        """
        if self._fit_is_due():
            assert self.replay_buffer is not None
            transitions = real_transitions(self.replay_buffer, self.device)
            self._adapt_rollout_length(transitions)
            self._fit_dynamics(transitions)
            self._imagine(transitions.observations)
            self._last_fit_timestep = self.num_timesteps
        with self._timed("updating"), self._mixed_batches(gradient_steps):
            self._update(gradient_steps, batch_size)

    def _update(self, gradient_steps: int, batch_size: int) -> None:
        """Make the algorithm's own updates."""
        super().train(gradient_steps, batch_size)

    @contextmanager
    def _mixed_batches(self, n: int) -> Iterator[None]:
        """
        A context in which ``replay_buffer`` mixes real and imagined transitions. SB3's ``train`` samples from this attribute,
        so it is replaced during the updates.
        """
        real = self.replay_buffer
        assert real is not None
        self.replay_buffer = MixedReplayBuffer(  # type: ignore[assignment]
            real, self.model_buffer, self.real_ratio, self.gamma, self._generator, n_batches=min(n, MOST_BATCHES)
        )
        try:
            yield
        finally:
            self.replay_buffer = real
