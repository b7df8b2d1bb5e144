"""The base class of TD-MPC and TD-MPC2, which replay sequences and plan actions in latent space."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

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
from sb3_mbrl.common.arguments import DISCOUNT, Rule, integer, number
from sb3_mbrl.common.environments import time_limit_or_warn
from sb3_mbrl.common.sequences import DictSequenceReplayBuffer, SequenceReplayBuffer, SequenceSamples
from sb3_mbrl.planning import MPPI
from sb3_mbrl.planning.planner import MOST_PLANS
from sb3_mbrl.tdmpc.arguments import (
    OF_THE_BUFFER,
    OF_THE_POLICY,
    check_actions,
    check_keywords,
    check_observations,
    discount_for,
)
from sb3_mbrl.tdmpc.latent_model import LatentModel, effective_rank
from sb3_mbrl.tdmpc.policies import CnnPolicy, LatentPolicy, MlpPolicy, MultiInputPolicy

GAMMA = 0.99
"""Discount if the time limit, from which it would be derived, is not known: the default of most algorithms of SB3."""


class LatentAlgorithm(ActsByPlanning, OffPolicyAlgorithm):
    """
    Base class of ``TDMPC`` and ``TDMPC2``, which define the update from a batch of sequences, and document the arguments.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }

    _accepted: ClassVar[dict[str, Rule]] = {
        **ModelBasedAlgorithm._accepted,
        "gamma": DISCOUNT | None,  # None: derived from the time limit
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
    """Derived arguments of the planner, mapped to the argument of the algorithm that they derive from."""

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
        check_keywords("replay_buffer_kwargs", self.replay_buffer_kwargs, replay_buffer_class, OF_THE_BUFFER)
        own = LatentPolicy if self.policy_class.__init__ is LatentPolicy.__init__ else None
        check_keywords("policy_kwargs", self.policy_kwargs, own, OF_THE_POLICY)
        check_keywords("planner_kwargs", self.planner_kwargs or {}, MPPI, self._of_the_planner)

    def _discount(self) -> float:
        limit = time_limit_or_warn(self.env, f"gamma is derived from it, and is {GAMMA} instead; pass gamma= to choose it.")
        return GAMMA if limit is None else discount_for(limit)

    def _choose_replay_buffer(self) -> None:
        own = DictSequenceReplayBuffer if isinstance(self.observation_space, spaces.Dict) else SequenceReplayBuffer
        if self.replay_buffer_class is None:
            self.replay_buffer_class = own
        holds_dicts = issubclass(self.replay_buffer_class, DictSequenceReplayBuffer)
        if not issubclass(self.replay_buffer_class, own) or holds_dicts != (own is DictSequenceReplayBuffer):
            kind = "flat or image" if own is SequenceReplayBuffer else "Dict"
            raise ValueError(
                f"replay_buffer_class must be {own.__name__} or a subclass of it that holds {kind} observations, got "
                f"{self.replay_buffer_class.__name__}."
            )
        self.replay_buffer_kwargs = {**self.replay_buffer_kwargs, "horizon": self.horizon, **self._priorities()}

    def _priorities(self) -> dict[str, float]:
        """Arguments of the replay buffer that set prioritised replay."""
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
        """Arguments of the policy: ``model_class``, ``model_kwargs``, and those of the optimizers."""

    @abstractmethod
    def _planner_arguments(self) -> dict[str, Any]:
        """All arguments of the planner, those of the user included."""

    @property
    def n_pretrain_steps(self) -> int:
        """Number of additional updates in the first call of ``train``."""
        return int(self.learning_starts) if self.pretrain_steps is None else self.pretrain_steps

    @property
    def model(self) -> LatentModel:
        """The latent model."""
        return self.policy.model

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.num_timesteps < learning_starts or self._n_updates == 0:
            self._planner_state = None  # random actions do not continue the plan of an earlier learn()
            return super()._sample_action(self.num_timesteps + 1, action_noise, n_envs)
        return self._with_noise(self._planned_actions(), action_noise)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        Update on batches of sequences. The first call makes ``pretrain_steps`` additional updates.

        :param gradient_steps: number of updates
        :param batch_size: sequences per update
        :raises ValueError: a loss is NaN or infinite
        """
        if self.replay_buffer.n_sequences == 0:
            return  # no sequence is complete yet
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
        :param values: scalar tensors
        :return: the same values as numbers
        :raises ValueError: a value is NaN or infinite
        """
        if not values:
            return {}
        # All values are read at once, because each read waits until an accelerator has done all its work
        numbers = dict(zip(values, th.stack([value.detach() for value in values.values()]).tolist(), strict=True))
        if not all(map(math.isfinite, numbers.values())):
            raise ValueError(
                f"The networks have diverged: after {self._n_updates} updates {numbers}. Lower learning_rate or "
                "max_grad_norm, or scale rewards and observations (VecNormalize), and continue from the last checkpoint."
            )
        return numbers

    @abstractmethod
    def _update(self, batch: SequenceSamples) -> dict[str, th.Tensor]:
        """
        :param batch: a batch of sequences
        :return: scalars for the log
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
        """A context in which critics pass gradients to actions but get none: the policy prior's loss must not train them."""
        self.model.critics.requires_grad_(False)
        try:
            yield
        finally:
            self.model.critics.requires_grad_(True)

    def _weights_of_steps(self, valid: th.Tensor) -> th.Tensor:
        """Weights 1, rho, rho^2, ..., and 0 beyond the end of an episode, (n, B)."""
        return valid * self.rho ** th.arange(len(valid), device=self.device).unsqueeze(1)

    def _weights_of_states(self, valid: th.Tensor) -> th.Tensor:
        """Weights of the latent states before and after each step, (n + 1, B)."""
        return self._weights_of_steps(th.cat([valid[:1], valid]))

    def _step_optimizer(self, optimizer: th.optim.Optimizer, loss: th.Tensor, max_grad_norm: float) -> th.Tensor:
        """Take a step with the clipped gradient; return the norm of the gradient before clipping."""
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        optimizer.step()
        return norm

    def _log_plan(self) -> None:
        super()._log_plan()
        if self.policy.last_states is None:
            return
        # A separate generator, so that logging does not change what is learned
        generator = th.Generator(device=self.device).manual_seed(self.num_timesteps)
        with th.no_grad():
            self.logger.record_mean("planner/prior_value", self.model.value(self.policy.last_states, generator).mean().item())

    def dump_logs(self) -> None:
        """Write the log, including measures of the latent model."""
        if self._last_batch is not None:
            self._log_latents(self._last_batch)
        super().dump_logs()

    @th.no_grad()
    def _log_latents(self, batch: SequenceSamples) -> None:
        self.policy.set_training_mode(False)
        reached, predicted = self._encode_later(batch, self.model.encode), self._roll_out(batch)
        errors = (batch.valid * (predicted[1:] - reached).pow(2).mean(dim=2)).sum(dim=1) / batch.valid.sum(dim=1)
        for step, error in enumerate(errors.tolist(), start=1):
            if batch.valid[step - 1].any():  # all episodes in the batch may be shorter
                self.logger.record(f"latent/error_step_{step}", error)
        self.logger.record("latent/effective_rank", effective_rank(predicted[0]))

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
