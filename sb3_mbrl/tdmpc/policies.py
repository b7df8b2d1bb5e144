"""The policies of TD-MPC and TD-MPC2: a world model, its optimisers, and the planner that acts in it."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule

from sb3_mbrl.common.actions import to_environment
from sb3_mbrl.mpc import MPCPolicy
from sb3_mbrl.tdmpc.latent_model import LatentModel
from sb3_mbrl.tdmpc.pixels import PixelExtractor
from sb3_mbrl.tdmpc.planner import LatentMPPI, LatentObjective, prior_proposals


class LatentPolicy(MPCPolicy):
    """
    Plans in a latent model, or acts by its policy prior.

    :param observation_space: of the environment
    :param action_space: of the environment
    :param lr_schedule: learning rate over the remaining progress
    :param model_class: ``f(observation_space, action_space, features_extractor, normalize_images=..., **model_kwargs)``
    :param model_kwargs: its arguments
    :param planner: ``"mppi"`` or ``"none"``
    :param planner_kwargs: of :class:`~sb3_mbrl.planning.MPPI`, complete
    :param discount: of rewards in a plan
    :param n_proposals: plans of the prior among the candidates
    :param max_plan_seconds: see :class:`~sb3_mbrl.MPCPolicy`
    :param seed: of the planner's samples
    :param encoder_lr_scale: times the learning rate
    :param features_extractor_class: of SB3, before the encoder
    :param features_extractor_kwargs: its arguments
    :param normalize_images: whether images are divided by 255 first
    :param optimizer_class: of all networks
    :param optimizer_kwargs: its arguments, but the learning rate; None: ``{"fused": True}``
    """

    features_extractor_default: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor

    model: LatentModel
    planner: LatentMPPI
    objective: LatentObjective

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        model_class: type[LatentModel],
        model_kwargs: Mapping[str, Any],
        planner: str,
        planner_kwargs: Mapping[str, Any],
        discount: float,
        n_proposals: int,
        max_plan_seconds: float | None = None,
        seed: int | None = None,
        encoder_lr_scale: float = 1.0,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: Callable[..., th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ):
        if planner not in ("mppi", "none"):
            raise ValueError(f"planner must be 'mppi', or 'none' to act by the policy prior alone; got {planner!r}.")
        extractor_class = features_extractor_class or self.features_extractor_default
        extractor = extractor_class(observation_space, **(features_extractor_kwargs or {}))
        super().__init__(
            model_class(observation_space, action_space, extractor, normalize_images=normalize_images, **model_kwargs),
            LatentMPPI(**planner_kwargs),
            discount=discount,
            n_particles=1,
            propagation="expectation",
            n_proposals=n_proposals,
            max_plan_seconds=max_plan_seconds,
            seed=seed,
        )
        self.plans = planner == "mppi"
        self.objective = LatentObjective(self.model, discount)
        # The same Adam in fewer operations
        optimizer_kwargs = {"fused": True} if optimizer_kwargs is None else optimizer_kwargs
        self.model_optimizer = optimizer_class(self._parameter_groups(encoder_lr_scale), lr=lr_schedule(1), **optimizer_kwargs)
        self.prior_optimizer = optimizer_class(
            [{"params": self.model.prior.parameters(), "lr_scale": 1.0}],
            lr=lr_schedule(1),
            **({"eps": 1e-5} | optimizer_kwargs),  # TD-MPC2's code
        )

    def _parameter_groups(self, encoder_lr_scale: float) -> list[dict[str, Any]]:
        """Of the model without its prior and its targets; ``lr_scale`` survives changes of the learning rate."""
        model = self.model
        encoder = [*model.features_extractor.parameters(), *model.encoder.parameters()]
        elsewhere = {id(each) for each in [*encoder, *model.prior.parameters()]}
        rest = [each for each in model.parameters() if each.requires_grad and id(each) not in elsewhere]
        return [{"params": encoder, "lr_scale": encoder_lr_scale}, {"params": rest, "lr_scale": 1.0}]

    # ---------------------------------------------------------------- acting

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Plan; or, with ``planner="none"``, ask the policy prior.

        :param observation: of one environment, or of B
        :param state: what the last call returned; None to begin
        :param episode_start: where a new episode begins, (B,)
        :param deterministic: execute the mean of the plan, or of the prior, instead of a sample; the same samples of the
            planner each time
        :return: actions in the environment's scale, and the state for the next call
        :raises ValueError: the observation does not fit, or ``state`` is of other environments or of another policy
        """
        self.set_training_mode(False)
        if self.plans:
            self.planner.explores = not deterministic
            return super().predict(observation, state, episode_start, deterministic)
        obs, vectorized = self.obs_to_tensor(observation)
        actions = to_environment(self._predict(obs, deterministic), self.action_space)
        return actions if vectorized else actions[0], state

    @th.no_grad()
    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """The policy prior's action, (B, A) in [-1, 1]."""
        return self.model.act(self.model.start(observation), self.generator, deterministic)

    def _proposals(self, rows: th.Tensor, generators: list[th.Generator]) -> th.Tensor:
        return prior_proposals(self.model, rows, self.n_proposals, self.planner.horizon, generators)

    # BasePolicy's own: what MPCPolicy saves has no networks
    save = BasePolicy.save  # type: ignore[assignment]
    load = BasePolicy.load  # type: ignore[assignment]


class MlpPolicy(LatentPolicy):
    """Flat Box observations."""


class CnnPolicy(LatentPolicy):
    """Images, shifted at random while the model is trained."""

    features_extractor_default = PixelExtractor


class MultiInputPolicy(LatentPolicy):
    """Dict observations."""

    features_extractor_default = CombinedExtractor
