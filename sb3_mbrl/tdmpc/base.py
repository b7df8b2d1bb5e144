"""What TD-MPC and TD-MPC2 share: sequences are replayed, actions planned in latent space."""

import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule
from torch import nn

from sb3_mbrl.algorithms.acting import ActsByPlanning
from sb3_mbrl.algorithms.base import ModelBasedAlgorithm
from sb3_mbrl.common.actions import check_bounds
from sb3_mbrl.common.arguments import DISCOUNT, Rule, integer, number
from sb3_mbrl.common.environments import time_limit
from sb3_mbrl.common.sequences import DictSequenceReplayBuffer, SequenceReplayBuffer, SequenceSamples
from sb3_mbrl.planning import MPPI
from sb3_mbrl.planning.planner import MOST_PLANS
from sb3_mbrl.tdmpc.latent_model import LatentModel
from sb3_mbrl.tdmpc.policies import CnnPolicy, LatentPolicy, MlpPolicy, MultiInputPolicy
from sb3_mbrl.tdmpc.told import ToldSizes
from sb3_mbrl.tdmpc.world_model import Sizes

GAMMA = 0.99
"""Discount if the time limit, from which it would follow, is not known: the default of most algorithms of SB3."""

SizesT = TypeVar("SizesT", Sizes, ToldSizes)


class LatentAlgorithm(ActsByPlanning, OffPolicyAlgorithm):
    """
    Base class of ``TDMPC`` and ``TDMPC2``, which say what is learned from a batch of sequences. Arguments are theirs.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }

    _accepted: ClassVar[dict[str, Rule]] = {
        **ModelBasedAlgorithm._accepted,
        "gamma": DISCOUNT | None,  # None: follows from the time limit
        "horizon": integer(1, 10**4),
        "rho": number(0, 1, above=True),
        "consistency_coef": number(0),
        "reward_coef": number(0),
        "value_coef": number(0),
        "termination_coef": number(0),
        "max_grad_norm": number(0, above=True),
        "pretrain_steps": integer(0, 10**9) | None,
        "n_proposals": integer(1, MOST_PLANS),
    }

    _of_the_planner: ClassVar[dict[str, str]] = {}
    """Arguments of the planner that follow from arguments of the algorithm, with the names of the latter."""

    policy: LatentPolicy
    replay_buffer: SequenceReplayBuffer | DictSequenceReplayBuffer
    _last_batch: SequenceSamples | None = None

    def __init__(
        self,
        policy: str | type[LatentPolicy],
        env: GymEnv | str,
        *,
        learning_rate: float | Schedule,
        buffer_size: int,
        learning_starts: int,
        batch_size: int,
        tau: float,
        gamma: float | None,
        train_freq: int | tuple[int, str],
        gradient_steps: int,
        action_noise: ActionNoise | None,
        replay_buffer_class: type[ReplayBuffer] | None,
        replay_buffer_kwargs: dict[str, Any] | None,
        stats_window_size: int,
        tensorboard_log: str | None,
        policy_kwargs: dict[str, Any] | None,
        verbose: int,
        seed: int | None,
        device: th.device | str,
        horizon: int,
        rho: float,
        pretrain_steps: int | None,
        planner: str,
        planner_kwargs: Mapping[str, Any] | None,
        n_proposals: int,
    ):
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            tau=tau,
            gamma=gamma,  # type: ignore[arg-type]
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
            sde_support=False,
            supported_action_spaces=(spaces.Box,),
        )
        self.horizon = horizon
        self.rho = rho
        self.pretrain_steps = pretrain_steps
        self.planner = planner
        self.planner_kwargs = dict(planner_kwargs or {})
        self.n_proposals = n_proposals

    # ---------------------------------------------------------------- setup

    def _setup_model(self) -> None:
        self._check_arguments()
        if self.gamma is None:
            self.gamma = self._discount()
        replay_buffer_kwargs = self.replay_buffer_kwargs
        self._choose_replay_buffer()
        try:
            super()._setup_model()
        finally:
            self.replay_buffer_kwargs = replay_buffer_kwargs

    @staticmethod
    def _check_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
        check_actions(action_space)
        check_observations(observation_space)

    def _check_arguments(self) -> None:
        self._check_common_arguments()
        if not issubclass(self.policy_class, LatentPolicy):
            raise ValueError(
                f"policy must be one of {sorted(self.policy_aliases)} or a subclass of them, got {self.policy_class.__name__}."
            )
        if self.optimize_memory_usage:
            raise ValueError("optimize_memory_usage=True loses the last observation of each episode. Leave it False.")
        self._check_keywords()

    def _check_keywords(self) -> None:
        replay_buffer_class = self.replay_buffer_class or SequenceReplayBuffer
        check_keywords("replay_buffer_kwargs", self.replay_buffer_kwargs, replay_buffer_class, _OF_THE_BUFFER)
        own = LatentPolicy if self.policy_class.__init__ is LatentPolicy.__init__ else None
        check_keywords("policy_kwargs", self.policy_kwargs, own, _OF_THE_POLICY)
        check_keywords("planner_kwargs", self.planner_kwargs or {}, MPPI, self._of_the_planner)

    def _discount(self) -> float:
        limit = time_limit(self.env)
        if limit is not None:
            return discount_for(limit)
        if self.verbose >= 1:
            print(f"gamma is {GAMMA}: it would follow from the time limit of the environment, which is not known.")
        return GAMMA

    def _choose_replay_buffer(self) -> None:
        own = DictSequenceReplayBuffer if isinstance(self.observation_space, spaces.Dict) else SequenceReplayBuffer
        if self.replay_buffer_class is None:
            self.replay_buffer_class = own
        is_of_dicts = issubclass(self.replay_buffer_class, DictSequenceReplayBuffer)
        if not issubclass(self.replay_buffer_class, own) or is_of_dicts != (own is DictSequenceReplayBuffer):
            raise ValueError(
                f"replay_buffer_class must replay sequences, as {own.__name__} and its subclasses do; got "
                f"{self.replay_buffer_class.__name__}."
            )
        self.replay_buffer_kwargs = {**self.replay_buffer_kwargs, "horizon": self.horizon, **self._priorities()}

    def _priorities(self) -> dict[str, float]:
        """Arguments of the replay buffer."""
        return {}

    def _make_policy(self, policy_class: type[LatentPolicy], **policy_kwargs: Any) -> LatentPolicy:
        return policy_class(
            self.observation_space,
            self.action_space,  # type: ignore[arg-type]
            self.lr_schedule,
            planner=self.planner,
            planner_kwargs=self._planner_arguments(),
            discount=self.gamma,
            n_proposals=self.n_proposals,
            seed=self.seed,
            **self._model_arguments(),
            **policy_kwargs,
        )

    @abstractmethod
    def _model_arguments(self) -> dict[str, Any]:
        """``model_class`` and ``model_kwargs`` of the policy, and how they are optimised."""

    @abstractmethod
    def _planner_arguments(self) -> dict[str, Any]:
        """Arguments of the planner, those of the user included."""

    @property
    def n_pretrain_steps(self) -> int:
        """Number of updates made at once when the random actions end."""
        return int(self.learning_starts) if self.pretrain_steps is None else self.pretrain_steps

    @property
    def model(self) -> LatentModel:
        """The latent model."""
        return self.policy.model

    # ---------------------------------------------------------------- the algorithm

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.num_timesteps < learning_starts or self._n_updates == 0:
            self._planner_state = None  # random actions are no part of a plan that an earlier learn() made
            return super()._sample_action(self.num_timesteps + 1, action_noise, n_envs)
        return self._with_noise(self._planned_actions(), action_noise)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        Updates on batches of sequences; the first time, ``pretrain_steps`` more.

        :param gradient_steps: number of updates
        :param batch_size: sequences per update
        :raises ValueError: a loss is NaN or infinite
        """
        if self.replay_buffer.n_sequences == 0:
            return  # none is complete yet
        if self._n_updates == 0:
            gradient_steps += self.n_pretrain_steps
        self.policy.set_training_mode(True)
        self._set_learning_rate()
        losses: dict[str, th.Tensor] = {}
        with self._timed("updating", "pretraining" if self._n_updates == 0 else ""):
            for _ in range(gradient_steps):
                self._last_batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
                losses = self._update(self._last_batch)
                self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, value in self._finite(losses).items():
            self.logger.record(f"train/{name}", value)

    def _finite(self, values: dict[str, th.Tensor]) -> dict[str, float]:
        """
        :raises ValueError: one is NaN or infinite
        """
        if not values:
            return {}
        # All are read at once: each reading waits until an accelerator has done all its work
        numbers = dict(zip(values, th.stack([value.detach() for value in values.values()]).tolist(), strict=True))
        if not all(map(math.isfinite, numbers.values())):
            raise ValueError(
                f"The networks have diverged: after {self._n_updates} updates {numbers}. Lower learning_rate or "
                "max_grad_norm, or scale rewards and observations (VecNormalize), and go on from the last checkpoint."
            )
        return numbers

    @abstractmethod
    def _update(self, batch: SequenceSamples) -> dict[str, th.Tensor]:
        """
        :param batch: of sequences
        :return: what is logged, each one number
        """

    def _set_learning_rate(self) -> None:
        learning_rate = self.lr_schedule(self._current_progress_remaining)
        self.logger.record("train/learning_rate", learning_rate)
        self.policy.set_learning_rate(learning_rate)

    def _encode_later(self, batch: SequenceSamples, encode: Callable[[PyTorchObs], th.Tensor]) -> th.Tensor:
        """Latent states of the observations after the first, (H, B, Z)."""
        if isinstance(batch.observations, dict):
            flat: PyTorchObs = {name: each[1:].flatten(0, 1) for name, each in batch.observations.items()}
        else:
            flat = batch.observations[1:].flatten(0, 1)
        return encode(flat).unflatten(0, batch.actions.shape[:2])

    def _roll_out(self, batch: SequenceSamples) -> th.Tensor:
        """Latent states predicted from the first observation and the actions, (H + 1, B, Z)."""
        first = batch.observations
        z = self.model.encode({name: each[0] for name, each in first.items()} if isinstance(first, dict) else first[0])
        latents = [z]
        for action in batch.actions:
            latents.append(self.model.next(latents[-1], action))
        return th.stack(latents)

    @contextmanager
    def _frozen_critics(self) -> Iterator[None]:
        """The policy prior needs the critics' gradient in its actions alone, not in their weights."""
        self.model.critics.requires_grad_(False)
        try:
            yield
        finally:
            self.model.critics.requires_grad_(True)

    def _weights_of_steps(self, valid: th.Tensor) -> th.Tensor:
        """1, rho, rho^2, ..., and 0 beyond the end of an episode, (n, B)."""
        return valid * self.rho ** th.arange(len(valid), device=self.device).unsqueeze(1)

    def _weights_of_states(self, valid: th.Tensor) -> th.Tensor:
        """Weights of the latent states before and after each of those steps, (n + 1, B)."""
        return self._weights_of_steps(th.cat([valid[:1], valid]))

    def _step_optimizer(self, optimizer: th.optim.Optimizer, loss: th.Tensor, max_grad_norm: float) -> th.Tensor:
        """Returns the norm of the gradient before it is clipped."""
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        optimizer.step()
        return norm

    # ---------------------------------------------------------------- monitoring

    def _log_plan(self) -> None:
        super()._log_plan()
        if self.policy.last_states is None:
            return
        # A generator of its own, so that logging does not change what is learned
        generator = th.Generator(device=self.device).manual_seed(self.num_timesteps)
        with th.no_grad():
            self.logger.record_mean("planner/prior_value", self.model.value(self.policy.last_states, generator).mean().item())

    def dump_logs(self) -> None:
        """Write the log, and into it how good the latent model is."""
        if self._last_batch is not None:
            self._log_latents(self._last_batch)
        super().dump_logs()

    @th.no_grad()
    def _log_latents(self, batch: SequenceSamples) -> None:
        self.policy.set_training_mode(False)
        reached, predicted = self._encode_later(batch, self.model.encode), self._roll_out(batch)
        errors = (batch.valid * (predicted[1:] - reached).pow(2).mean(dim=2)).sum(dim=1) / batch.valid.sum(dim=1)
        for step, error in enumerate(errors.tolist(), start=1):
            if batch.valid[step - 1].any():  # not all episodes last as long
                self.logger.record(f"latent/error_step_{step}", error)
        self.logger.record("latent/effective_rank", effective_rank(predicted[0]))

    # ---------------------------------------------------------------- learn, save and load

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        buffer = self.replay_buffer
        if not isinstance(buffer, SequenceReplayBuffer) or buffer.horizon != self.horizon:
            raise ValueError(
                f"The replay buffer must replay sequences of horizon={self.horizon} transitions, got a {type(buffer).__name__}"
                f" of horizon={getattr(buffer, 'horizon', None)}. Load one that was saved with this horizon."
            )
        return super()._setup_learn(*args, **kwargs)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_last_batch"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.model_optimizer", "policy.prior_optimizer"], []


_OF_THE_BUFFER = {
    "horizon": "horizon",
    "priority_exponent": "TDMPC(priority_exponent=...)",
    "importance_exponent": "TDMPC(importance_exponent=...)",
    **dict.fromkeys(["buffer_size", "device"], "the argument of this name"),
    **dict.fromkeys(["observation_space", "action_space", "n_envs"], "env"),
    "optimize_memory_usage": "nothing: it loses the last observation of each episode",
}
_OF_THE_POLICY = {
    **dict.fromkeys(["observation_space", "action_space"], "env"),
    **dict.fromkeys(["model_class", "model_kwargs", "net_arch", "n_critics"], "model_size"),
    **dict.fromkeys(["planner", "planner_kwargs", "n_proposals", "seed", "encoder_lr_scale"], "the argument of this name"),
    **{"lr_schedule": "learning_rate", "discount": "gamma", "prior_eps": "optimizer_kwargs"},
}


def check_keywords(name: str, given: Mapping[str, Any], function: Callable | None, elsewhere: Mapping[str, str]) -> None:
    """
    :param name: of an argument that holds keyword arguments
    :param given: its value
    :param function: that will be given them; None: nothing is known about it
    :param elsewhere: those of its arguments that follow from others, and from which
    :raises ValueError: one that is not accepted
    """
    for key in given:
        if key in elsewhere:
            raise ValueError(f"{name} does not accept {key!r}, which follows from {elsewhere[key]}.")
    if function is None:
        return
    parameters = inspect.signature(function).parameters
    accepted = [key for key in parameters if key not in elsewhere]
    refused = [key for key in given if key not in accepted]
    if refused and not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        raise ValueError(f"{name} does not accept {refused}; it accepts {accepted}.")


def choose_sizes(given: Any, named: Mapping[Any, SizesT], kind: type[SizesT]) -> SizesT:
    """
    :param given: a name, or all numbers as a mapping
    :param named: sizes by name
    :param kind: a named tuple of integers
    :return: the sizes
    :raises ValueError: it is neither
    """
    if isinstance(given, Mapping):
        names = kind._fields
        if set(given) != set(names) or not all(isinstance(each, Integral) and int(each) > 0 for each in given.values()):
            raise ValueError(f"model_size as a mapping has {list(names)}, each an integer of at least 1; got {dict(given)}.")
        return kind(**given)
    if not isinstance(given, (str, Integral)) or isinstance(given, bool) or given not in list(named):
        raise ValueError(f"model_size must be one of {list(named)}, or a mapping of {list(kind._fields)}; got {given!r}.")
    return named[given]


def check_actions(space: spaces.Space) -> None:
    """
    :raises ValueError: it is no Box with finite bounds, the lower ones below the higher
    """
    if not isinstance(space, spaces.Box):
        raise ValueError(f"TD-MPC plans Box actions, got {space}. PETS, Dyna and DynaQ take Discrete ones.")
    check_bounds(space)


def check_observations(space: spaces.Space) -> None:
    """
    :raises ValueError: SB3's replay buffers do not hold such observations
    """
    for each in space.values() if isinstance(space, spaces.Dict) else [space]:
        if isinstance(each, spaces.MultiDiscrete) and each.nvec.ndim > 1:
            raise ValueError(
                f"MultiDiscrete observations must have one dimension, got shape {each.shape}. Flatten them: "
                "gymnasium.wrappers.TransformObservation(env, numpy.ravel, gymnasium.spaces.MultiDiscrete(nvec.ravel()))."
            )


def discount_for(episode_length: int) -> float:
    """
    :param episode_length: steps until an episode is truncated
    :return: TD-MPC2's discount: the longer the episodes, the longer the view
    """
    fraction = episode_length / 5
    return min(max((fraction - 1) / fraction, 0.95), 0.995)


def effective_rank(latents: th.Tensor) -> float:
    """
    :param latents: (B, Z)
    :return: how many directions they spread in: the exponential of the entropy of their singular values (Roy & Vetterli 2007);
        a collapsed encoder has 1
    """
    singular = th.linalg.svdvals(latents - latents.mean(dim=0))
    shares = singular / singular.sum().clamp(min=1e-12)
    return th.special.entr(shares).sum().exp().item()
