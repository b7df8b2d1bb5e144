"""TD-MPC: temporal difference learning for model predictive control, https://arxiv.org/abs/2203.04955."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch as th
import torch.nn.functional as F
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import polyak_update

from sb3_mbrl.algorithms.forecast import growth
from sb3_mbrl.common.arguments import SHARE, Rule, list_of, number
from sb3_mbrl.common.sequences import SequenceSamples
from sb3_mbrl.tdmpc.arguments import by_size, choose_sizes
from sb3_mbrl.tdmpc.base import LatentAlgorithm
from sb3_mbrl.tdmpc.policies import LatentPolicy
from sb3_mbrl.tdmpc.told import TOLD, TOLD_SIZES, ToldSizes

PLANNER: dict[str, Any] = {
    "population_size": 512,  # in addition to 25 proposals of the policy
    "n_iterations": 6,
    "n_elites": 64,
    "temperature": 2.0,  # the paper's 0.5 is the inverse
    "momentum": 0.1,
    "init_std": 2.0,
}
"""Arguments of MPPI in TD-MPC."""

MIN_STD, MAX_STD = 1e-6, 2.0
"""Bounds on the standard deviation of plans; ``MIN_STD`` stands in for 0."""

OVERHEAD = 3
"""Fixed cost of a plan (proposals of the policy and terminal value), in units of the cost of one planned step."""

MAX_LOSS = 1e4
"""Upper limit for each loss of a sequence, and for its priority."""


class TDMPC(LatentAlgorithm):
    """
    TD-MPC (Hansen et al. 2022): learns task-oriented latent dynamics (TOLD) from prioritised sequences, and plans each action
    in them by MPPI, with a policy that proposes and critics that value where a plan ends. :class:`TDMPC2` is its successor.

    Paper: https://arxiv.org/abs/2203.04955; its code: https://github.com/nicklashansen/tdmpc.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"`` or ``"MultiInputPolicy"``, as the observations are
    :param env: flat Box, image or Dict observations; Box actions with finite bounds; one environment or many
    :param learning_rate: learning rate of all networks (paper: 1e-3; 3e-4 for pixels)
    :param buffer_size: transitions of the replay buffer
    :param learning_starts: environment steps of uniform random actions first (paper: 5000)
    :param batch_size: sequences per update (paper: 512; 256 for pixels)
    :param tau: share of the networks in an update of their targets; None: 0.01 (paper), for the small model 0.05
    :param gamma: discount; None: derived from the time limit, as in ``TDMPC2``
    :param train_freq: environment steps between two calls of ``train``
    :param gradient_steps: updates in a call of ``train``; -1: one for each environment step since the last call (paper)
    :param action_noise: added to planned actions, which explore by themselves
    :param replay_buffer_class: a subclass of ``SequenceReplayBuffer``
    :param replay_buffer_kwargs: Keyword arguments to pass to the replay buffer on creation
    :param target_update_interval: updates between two updates of the targets
    :param stats_window_size: Window size for the rollout logging
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: further arguments of the policy (``features_extractor_class``, ``max_plan_seconds``, ...)
    :param verbose: Verbosity level
    :param seed: Seed for the pseudo random generators
    :param device: Device on which the code should run
    :param model_size: ``"default"`` (paper); ``"small"``, for CPUs; or units and
        entries: ``{"encoder": 256, "mlp": 512, "latent": 100}`` (the paper's for dogs and humanoids)
    :param horizon: transitions of a replayed sequence, and steps of the longest plan
    :param rho: weight of a loss one step later, relative to one step earlier
    :param consistency_coef: weight of the latent consistency loss
    :param reward_coef: weight of the reward loss
    :param value_coef: weight of the value loss
    :param termination_coef: weight of the termination loss, which is not in the paper
    :param max_grad_norm: gradients are clipped to this norm, those of the model and of the policy apart
    :param horizon_schedule: ``(start, end, first, last)``: steps of a plan, which go from ``first`` to ``last`` between the
        environment steps ``start`` and ``end``, and never exceed ``horizon``; None as the last: ``horizon``. The schedule
        starts again when ``learn`` resets ``num_timesteps``, as all schedules do
    :param std_schedule: ``(start, end, first, last)``: lower bound of the standard deviation of plans; the standard deviation
        of the policy's noise is always ``last``
    :param priority_exponent: alpha of prioritised replay; 0: uniform
    :param importance_exponent: beta of prioritised replay
    :param pretrain_steps: updates made at once when the random actions end; None: as many as ``learning_starts`` (paper)
    :param planner: ``"mppi"``, or ``"none"`` to act by the policy alone
    :param planner_kwargs: arguments of :class:`~sb3_mbrl.planning.MPPI` that replace the paper's; ``population_size`` does not
        count the proposals
    :param n_proposals: number of candidates of a plan that the policy proposes
    :param _init_setup_model: Whether or not to build the networks at the creation of the instance
    :raises ValueError: an argument or a space is not supported; the message says what is
    """

    algorithm_name = "TDMPC"

    _accepted: ClassVar[dict[str, Rule]] = {
        **LatentAlgorithm._accepted,
        "priority_exponent": SHARE,
        "importance_exponent": SHARE,
    }
    _of_the_planner: ClassVar[dict[str, str]] = {"std_bounds": "std_schedule", "horizon": "horizon_schedule"}

    model: TOLD

    def __init__(
        self,
        policy: str | type[LatentPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 1_000_000,
        learning_starts: int = 1_000,
        batch_size: int = 512,
        tau: float | None = None,
        gamma: float | None = None,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = -1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        *,
        target_update_interval: int = 2,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        model_size: str | Mapping[str, int] = "small",
        horizon: int = 5,
        rho: float = 0.5,
        consistency_coef: float = 2.0,
        reward_coef: float = 0.5,
        value_coef: float = 0.1,
        termination_coef: float = 1.0,
        max_grad_norm: float = 10.0,
        horizon_schedule: Sequence[float | None] = (0, 25_000, 1, None),
        std_schedule: Sequence[float] = (0, 25_000, 0.5, 0.05),
        priority_exponent: float = 0.6,
        importance_exponent: float = 0.4,
        pretrain_steps: int | None = None,
        planner: str = "mppi",
        planner_kwargs: Mapping[str, Any] | None = None,
        n_proposals: int = 25,
        _init_setup_model: bool = True,
    ):
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            tau=by_size(model_size, small=0.05, other=0.01) if tau is None else tau,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            horizon=horizon,
            rho=rho,
            pretrain_steps=pretrain_steps,
            planner=planner,
            planner_kwargs=planner_kwargs,
            n_proposals=n_proposals,
        )
        self.model_size = model_size
        self.consistency_coef = consistency_coef
        self.reward_coef = reward_coef
        self.value_coef = value_coef
        self.termination_coef = termination_coef
        self.max_grad_norm = max_grad_norm
        self.target_update_interval = target_update_interval
        self.horizon_schedule = horizon_schedule
        self.std_schedule = std_schedule
        self.priority_exponent = priority_exponent
        self.importance_exponent = importance_exponent

        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        self._follow_schedules()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        choose_sizes(self.model_size, TOLD_SIZES, ToldSizes)
        _check_schedule("horizon_schedule", self._plan_lengths(), 1, math.inf)
        _check_schedule("std_schedule", self.std_schedule, 0, MAX_STD)

    def _priorities(self) -> dict[str, float]:
        return {"priority_exponent": self.priority_exponent, "importance_exponent": self.importance_exponent}

    def _model_arguments(self) -> dict[str, Any]:
        sizes = choose_sizes(self.model_size, TOLD_SIZES, ToldSizes)
        return {"model_class": TOLD, "model_kwargs": {"sizes": sizes, "noise_std": self.std_schedule[3]}}

    def _planner_arguments(self) -> dict[str, Any]:
        return {"horizon": self.horizon, "std_bounds": (MIN_STD, MAX_STD), **PLANNER, **(self.planner_kwargs or {})}

    def _plan_lengths(self) -> Any:
        """``horizon_schedule`` with None replaced by ``horizon``."""
        given = self.horizon_schedule
        return given if not isinstance(given, Sequence) else [self.horizon if each is None else each for each in given]

    def _n_planned(self, num_timesteps: int) -> int:
        """Length of a plan that is made at this environment step."""
        return min(int(_linear(self._plan_lengths(), num_timesteps)), self.horizon)

    def _growth(self, phase: str, begin: int, total_timesteps: int) -> float:
        if phase == "planning":
            return growth(lambda step: self._n_planned(step) + OVERHEAD, begin, self.num_timesteps, total_timesteps)
        return super()._growth(phase, begin, total_timesteps)

    def _follow_schedules(self) -> None:
        """Replace the planner by one with the current settings: plans become longer and less random during a run."""
        n_planned = self._n_planned(self.num_timesteps)
        min_std = max(_linear(self.std_schedule, self.num_timesteps), MIN_STD)
        self.policy.planner = self.policy.planner.limited(n_planned, (min_std, MAX_STD))

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        self._follow_schedules()
        return super().predict(observation, state, episode_start, deterministic)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        self._follow_schedules()
        return super()._sample_action(learning_starts, action_noise, n_envs)

    def _update(self, batch: SequenceSamples) -> dict[str, th.Tensor]:
        losses, td_errors, latents = self._model_losses(batch, self._td_targets(batch))
        loss = (
            self.consistency_coef * losses["consistency_loss"]
            + self.reward_coef * losses["reward_loss"]
            + self.value_coef * losses["value_loss"]
        )
        loss = (batch.weights * loss).mean() / self.horizon + self.termination_coef * losses["termination_loss"]
        grad_norm = self._step_optimizer(self.policy.model_optimizer, loss, self.max_grad_norm)
        self._update_priorities(batch, td_errors, loss)
        prior_loss = self._prior_loss(latents.detach(), self._weights_of_states(batch.valid))
        self._step_optimizer(self.policy.prior_optimizer, prior_loss, self.max_grad_norm)
        if self._n_updates % self.target_update_interval == 0:
            polyak_update(self.model.online().parameters(), self.model.targets.parameters(), self.tau)
        means = {name: each.mean() for name, each in losses.items()}
        return {"loss": loss, "grad_norm": grad_norm, "prior_loss": prior_loss, **means}

    @th.no_grad()
    def _update_priorities(self, batch: SequenceSamples, priorities: th.Tensor, loss: th.Tensor) -> None:
        # The buffer needs the priorities on the host; the loss is copied with them, so that it can be checked at no further
        # cost
        host = th.cat([priorities, loss.unsqueeze(0)]).cpu()
        priorities, loss = host[:-1], host[-1]
        self._finite({"loss": loss, "priorities": priorities.sum()})
        self.replay_buffer.update_priorities(batch.indices, priorities)

    @th.no_grad()
    def _td_targets(self, batch: SequenceSamples) -> th.Tensor:
        """Reward plus discounted value of the policy's next action, the lower one of both target critics, (H, B)."""
        z = self._encode_later(batch, self.model.encode)
        value = self.model.q_values(z, self.model.act(z, self._generator), target=True).amin(dim=0)
        return batch.rewards.squeeze(-1) + self.gamma * (1 - batch.terminated.squeeze(-1)) * value

    def _model_losses(
        self, batch: SequenceSamples, td_targets: th.Tensor
    ) -> tuple[dict[str, th.Tensor], th.Tensor, th.Tensor]:
        """Losses of an open-loop rollout of each sequence, (B,) each; priorities, (B,); latent states, (H + 1, B, Z)."""
        model = self.model
        with th.no_grad():
            next_latents = self._encode_later(batch, model.encode_targets)
        latents = self._roll_out(batch)
        weights = self._weights_of_steps(batch.valid)
        consistency = F.mse_loss(latents[1:], next_latents, reduction="none").mean(dim=-1)
        reward_error = model.reward(latents[:-1], batch.actions) - batch.rewards.squeeze(-1)
        td_error = model.q_values(latents[:-1], batch.actions) - td_targets
        ended = model.termination_logit(latents[1:])
        model.terminates.clamp_(min=batch.terminated.max())
        losses = {
            "consistency_loss": (weights * consistency).sum(dim=0).clamp(max=MAX_LOSS),
            "reward_loss": (weights * reward_error**2).sum(dim=0).clamp(max=MAX_LOSS),
            "value_loss": (weights * td_error**2).sum(dim=(0, 1)).clamp(max=MAX_LOSS),
            "termination_loss": F.binary_cross_entropy_with_logits(ended, batch.terminated.squeeze(-1), batch.valid),
        }
        priorities = (weights * td_error.detach().abs()).sum(dim=(0, 1)).clamp(max=MAX_LOSS) + 1e-6
        return losses, priorities, latents

    def _prior_loss(self, latents: th.Tensor, weights: th.Tensor) -> th.Tensor:
        """Loss of the policy, which maximises the lower critic."""
        action = self.model.act(latents, self._generator)
        with self._frozen_critics():
            value = self.model.q_values(latents, action).amin(dim=0)
        return -(weights * value).sum(dim=0).mean()


def _check_schedule(name: str, schedule: Any, lowest: float, highest: float) -> None:
    has_form = list_of(number(), 4, 4).accepts(schedule)
    if not has_form or not 0 <= schedule[0] < schedule[1] or not all(lowest <= value <= highest for value in schedule[2:]):
        raise ValueError(
            f"{name} must be (start, end, first, last): environment steps, the first before the second, then values from "
            f"{lowest} to {highest}; got {schedule!r}."
        )


def _linear(schedule: Sequence[float], step: int) -> float:
    start, end, first, last = schedule
    return float(np.interp(step, [start, end], [first, last]))
