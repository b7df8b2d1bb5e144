"""TD-MPC2: scalable world models for continuous control, https://arxiv.org/abs/2310.16828. Results: docs/modules/tdmpc.md."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch as th
import torch.nn.functional as F
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import polyak_update

from sb3_mbrl.common.actions import action_dim
from sb3_mbrl.common.arguments import Rule, number
from sb3_mbrl.common.sequences import SequenceSamples
from sb3_mbrl.tdmpc.arguments import by_size, choose_sizes
from sb3_mbrl.tdmpc.base import LatentAlgorithm
from sb3_mbrl.tdmpc.layers import GROUP_SIZE
from sb3_mbrl.tdmpc.policies import LatentPolicy
from sb3_mbrl.tdmpc.world_model import SIZES, Sizes, WorldModel

PLANNER: dict[str, Any] = {
    "population_size": 488,  # in addition to 24 proposals of the prior
    "n_iterations": 6,
    "n_elites": 64,
    "temperature": 2.0,  # the paper's 0.5 is the inverse
    "init_std": 2.0,
    "std_bounds": (0.05, 2.0),
}
"""Arguments of MPPI in TD-MPC2. With 20 action dimensions or more, two more iterations are made."""


class TDMPC2(LatentAlgorithm):
    """
    TD-MPC2 (Hansen et al. 2024): learns a latent world model from replayed sequences, without decoding observations, and plans
    each action in it by MPPI, with a policy prior that proposes and critics that value where a plan ends.

    Paper: https://arxiv.org/abs/2310.16828; its code: https://github.com/nicklashansen/tdmpc2.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"`` or ``"MultiInputPolicy"``, as the observations are
    :param env: flat Box, image or Dict observations; Box actions with finite bounds; one environment or many
    :param learning_rate: learning rate of all networks but the encoder, whose is ``encoder_lr_scale`` times as large; None:
        3e-4 (paper), for the small model 1e-3
    :param buffer_size: transitions of the replay buffer
    :param learning_starts: environment steps of uniform random actions first (paper: five episodes, at least 1000)
    :param batch_size: sequences per update
    :param tau: share of the critics in each update of the target critics; None: 0.01 (paper), for the small model 0.03
    :param gamma: discount; None: (T/5 - 1) / (T/5), in [0.95, 0.995], for episodes truncated after T steps (paper); 0.99
        if T is not known. Pass gamma where a wrapper around the time limit repeats actions: T counts the steps inside of it
    :param train_freq: environment steps between two calls of ``train``
    :param gradient_steps: updates in a call of ``train``; -1: one for each environment step since the last call (paper)
    :param action_noise: added to planned actions, which explore by themselves
    :param replay_buffer_class: a subclass of ``SequenceReplayBuffer``
    :param replay_buffer_kwargs: Keyword arguments to pass to the replay buffer on creation
    :param stats_window_size: Window size for the rollout logging
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: further arguments of the policy (``features_extractor_class``, ``max_plan_seconds``, ...)
    :param verbose: Verbosity level
    :param seed: Seed for the pseudo random generators
    :param device: Device on which the code should run
    :param model_size: millions of parameters, 1, 5 (paper's default), 19, 48 or 317; ``"small"``, for CPUs; or units,
        entries, layers and critics: ``{"encoder": 256, "mlp": 512, "latent": 512, "encoder_layers": 2, "n_critics": 5}``
    :param horizon: steps of a plan, and transitions of a replayed sequence
    :param rho: weight of a loss one step later, relative to one step earlier
    :param consistency_coef: weight of the latent consistency loss
    :param reward_coef: weight of the reward loss
    :param value_coef: weight of the value loss
    :param termination_coef: weight of the termination loss
    :param entropy_coef: weight of the policy prior's scaled entropy
    :param encoder_lr_scale: learning rate of the encoder, relative to the others
    :param max_grad_norm: gradients are clipped to this norm, those of the model and of the policy prior apart
    :param pretrain_steps: updates made at once when the random actions end; None: as many as ``learning_starts`` (paper)
    :param planner: ``"mppi"``, or ``"none"`` to act by the policy prior alone
    :param planner_kwargs: arguments of :class:`~sb3_mbrl.planning.MPPI` that replace the paper's; ``population_size`` does not
        count the proposals
    :param n_proposals: number of candidates of a plan that the policy prior proposes
    :param _init_setup_model: Whether or not to build the networks at the creation of the instance
    :raises ValueError: an argument or a space is not supported; the message says what is
    """

    algorithm_name = "TDMPC2"

    _accepted: ClassVar[dict[str, Rule]] = {
        **LatentAlgorithm._accepted,
        "entropy_coef": number(0),
        "encoder_lr_scale": number(0),
    }

    model: WorldModel

    def __init__(
        self,
        policy: str | type[LatentPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule | None = None,
        buffer_size: int = 1_000_000,
        learning_starts: int = 1_000,
        batch_size: int = 256,
        tau: float | None = None,
        gamma: float | None = None,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = -1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        *,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        model_size: str | int | Mapping[str, int] = "small",
        horizon: int = 3,
        rho: float = 0.5,
        consistency_coef: float = 20.0,
        reward_coef: float = 0.1,
        value_coef: float = 0.1,
        termination_coef: float = 1.0,
        entropy_coef: float = 1e-4,
        encoder_lr_scale: float = 0.3,
        max_grad_norm: float = 20.0,
        pretrain_steps: int | None = None,
        planner: str = "mppi",
        planner_kwargs: Mapping[str, Any] | None = None,
        n_proposals: int = 24,
        _init_setup_model: bool = True,
    ):
        super().__init__(
            policy,
            env,
            learning_rate=by_size(model_size, small=1e-3, other=3e-4) if learning_rate is None else learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            tau=by_size(model_size, small=0.03, other=0.01) if tau is None else tau,
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
        self.entropy_coef = entropy_coef
        self.encoder_lr_scale = encoder_lr_scale
        self.max_grad_norm = max_grad_norm

        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        latent = choose_sizes(self.model_size, SIZES, Sizes).latent
        if latent % GROUP_SIZE:
            raise ValueError(f"model_size['latent'] must be a multiple of {GROUP_SIZE}, got {latent}.")

    def _model_arguments(self) -> dict[str, Any]:
        return {
            "model_class": WorldModel,
            "model_kwargs": {"sizes": choose_sizes(self.model_size, SIZES, Sizes)},
            "encoder_lr_scale": self.encoder_lr_scale,
            "prior_eps": 1e-5,  # as in the official code
        }

    def _planner_arguments(self) -> dict[str, Any]:
        more = {"n_iterations": PLANNER["n_iterations"] + 2} if action_dim(self.action_space) >= 20 else {}
        return {"horizon": self.horizon, **PLANNER, **more, **(self.planner_kwargs or {})}

    def _update(self, batch: SequenceSamples) -> dict[str, th.Tensor]:
        with th.no_grad():
            next_latents = self._encode_later(batch, self.model.encode)
        losses, latents = self._model_losses(batch, next_latents, self._td_targets(batch, next_latents))
        loss = (
            self.consistency_coef * losses["consistency_loss"]
            + self.reward_coef * losses["reward_loss"]
            + self.value_coef * losses["value_loss"]
            + self.termination_coef * losses["termination_loss"]
        )
        grad_norm = self._step_optimizer(self.policy.model_optimizer, loss, self.max_grad_norm)
        prior_losses = self._prior_losses(latents.detach(), self._weights_of_states(batch.valid))
        self._step_optimizer(self.policy.prior_optimizer, prior_losses["prior_loss"], self.max_grad_norm)
        polyak_update(self.model.critics.parameters(), self.model.target_critics.parameters(), self.tau)
        return {"loss": loss, "grad_norm": grad_norm, **losses, **prior_losses}

    @th.no_grad()
    def _td_targets(self, batch: SequenceSamples, next_latents: th.Tensor) -> th.Tensor:
        """Reward plus discounted value of the policy prior's next action, the lower one of two target critics, (H, B)."""
        z = next_latents.flatten(0, 1)
        action = self.model.sample_policy(z, self._generator).action
        value = self.model.two_q_values(z, action, self._generator, target=True).amin(dim=0).view_as(batch.rewards)
        return (batch.rewards + self.gamma * (1 - batch.terminated) * value).squeeze(-1)

    def _model_losses(
        self, batch: SequenceSamples, next_latents: th.Tensor, td_targets: th.Tensor
    ) -> tuple[dict[str, th.Tensor], th.Tensor]:
        """Losses of an open-loop rollout of each sequence, and its latent states (H + 1, B, Z)."""
        model, two_hot = self.model, self.model.two_hot
        latents = self._roll_out(batch)
        weights = self._weights_of_steps(batch.valid)
        consistency = F.mse_loss(latents[1:], next_latents, reduction="none").mean(dim=-1)
        reward = two_hot.loss(model.reward_logits(latents[:-1], batch.actions), batch.rewards.squeeze(-1))
        value = two_hot.loss(model.q_logits(latents[:-1], batch.actions), td_targets)
        ended = model.termination_logit(latents[1:])
        model.terminates.clamp_(min=batch.terminated.max())
        losses = {
            "consistency_loss": (weights * consistency).mean(),
            "reward_loss": (weights * reward).mean(),
            "value_loss": (weights * value).mean(),
            "termination_loss": F.binary_cross_entropy_with_logits(ended, batch.terminated.squeeze(-1), batch.valid),
        }
        return losses, latents

    def _prior_losses(self, latents: th.Tensor, weights: th.Tensor) -> dict[str, th.Tensor]:
        """Losses of the policy prior, which maximises entropy and values; values are divided by their spread."""
        sample = self.model.sample_policy(latents, self._generator)
        with self._frozen_critics():
            values = self.model.two_q_values(latents.flatten(0, 1), sample.action.flatten(0, 1), self._generator).mean(dim=0)
        values = values.view(latents.shape[:2])
        scale = self.model.update_q_scale(values[0].detach())
        loss = -(weights * (values / scale + self.entropy_coef * sample.scaled_entropy)).mean()
        return {"prior_loss": loss, "prior_entropy": sample.entropy.mean(), "q_scale": scale}
