"""The policies of TD-MPC and TD-MPC2: a world model, its optimizers, and the planner that acts in it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.common.utils import ConstantSchedule

from sb3_mbrl.common.actions import to_environment
from sb3_mbrl.common.arguments import check_arguments
from sb3_mbrl.mpc import PlanningPolicy
from sb3_mbrl.mpc.planning_policy import check_observation
from sb3_mbrl.mpc.policy import PLANNING
from sb3_mbrl.tdmpc.latent_model import LatentModel
from sb3_mbrl.tdmpc.pixels import PixelExtractor
from sb3_mbrl.tdmpc.planner import LatentMPPI, LatentObjective, prior_proposals


class LatentPolicy(PlanningPolicy):
    """
    Plans in a latent model, or acts by its policy prior.

    :param observation_space: observation space of the environment
    :param action_space: action space of the environment
    :param lr_schedule: learning rate over the remaining progress
    :param model_class: ``f(observation_space, action_space, features_extractor, normalize_images=..., **model_kwargs)``
    :param model_kwargs: further arguments of ``model_class``
    :param planner: ``"mppi"``, or ``"none"`` to act by the policy prior
    :param planner_kwargs: all arguments of :class:`~sb3_mbrl.planning.MPPI`
    :param discount: discount of rewards in a plan
    :param n_proposals: number of candidates of a plan that the policy prior proposes
    :param max_plan_seconds: see :class:`~sb3_mbrl.MPCPolicy`
    :param seed: seed of the planner's samples
    :param encoder_lr_scale: learning rate of the encoder, relative to the others
    :param prior_eps: epsilon of Adam for the policy prior; None: that of the other networks
    :param features_extractor_class: SB3's features extractor, in front of the encoder; None: the policy's default
    :param features_extractor_kwargs: arguments of the features extractor
    :param normalize_images: whether images are divided by 255 first
    :param optimizer_class: optimizer of all networks
    :param optimizer_kwargs: arguments of the optimizer without the learning rate; None: ``{"fused": True}`` for Adam
    :raises ValueError: the policy does not support these observations, or an argument is not known
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
        prior_eps: float | None = None,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: Callable[..., th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ):
        arguments: dict[str, Any] = dict(locals())
        check_arguments(arguments, {"n_proposals": PLANNING["n_proposals"]})
        if planner not in ("mppi", "none"):
            raise ValueError(f"planner must be 'mppi', or 'none' to act by the policy prior alone; got {planner!r}.")
        if features_extractor_class is None:
            self._check_observations(observation_space)
        extractor_class = features_extractor_class or self.features_extractor_default
        extractor = extractor_class(observation_space, **(features_extractor_kwargs or {}))
        model = model_class(observation_space, action_space, extractor, normalize_images=normalize_images, **model_kwargs)
        super().__init__(
            model,
            LatentMPPI(**planner_kwargs),
            LatentObjective(model, discount),
            max_plan_seconds=max_plan_seconds,
            seed=seed,
        )
        self.plans = planner == "mppi"
        self.n_proposals = n_proposals
        self.encoder_lr_scale = encoder_lr_scale
        self._make_optimizers(lr_schedule(1), prior_eps, optimizer_class, optimizer_kwargs)
        # All arguments but the first three, from which a saved policy is made again
        self._arguments = {name: arguments[name] for name in [*inspect.signature(LatentPolicy).parameters][3:]}

    def _make_optimizers(
        self,
        learning_rate: float,
        prior_eps: float | None,
        optimizer_class: Callable[..., th.optim.Optimizer],
        optimizer_kwargs: dict[str, Any] | None,
    ) -> None:
        is_adam = optimizer_class is th.optim.Adam
        if optimizer_kwargs is None:  # fused Adam computes the same in fewer operations
            optimizer_kwargs = {"fused": True} if is_adam else {}
        self.model_optimizer = optimizer_class(self._parameter_groups(), lr=learning_rate, **optimizer_kwargs)
        own = {} if prior_eps is None or not is_adam else {"eps": prior_eps}
        self.prior_optimizer = optimizer_class(self.model.prior.parameters(), lr=learning_rate, **{**own, **optimizer_kwargs})
        self.set_learning_rate(learning_rate)

    @staticmethod
    def _check_observations(space: spaces.Space) -> None:
        """:raises ValueError: the default features extractor does not support these observations"""

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters of the model without its prior and its targets, in two groups: the encoder, and the rest."""
        model = self.model
        encoder = [*model.features_extractor.parameters(), *model.encoder.parameters()]
        elsewhere = {id(each) for each in [*encoder, *model.prior.parameters()]}
        rest = [each for each in model.parameters() if each.requires_grad and id(each) not in elsewhere]
        return [{"params": encoder}, {"params": rest}]

    def set_learning_rate(self, learning_rate: float) -> None:
        """
        :param learning_rate: learning rate of all networks but the encoder; the encoder's is ``encoder_lr_scale`` times as
            large
        """
        encoder, rest = self.model_optimizer.param_groups
        encoder["lr"] = learning_rate * self.encoder_lr_scale
        for group in (rest, *self.prior_optimizer.param_groups):
            group["lr"] = learning_rate

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # The schedules of TD-MPC replace the planner, so its present settings are saved
        now = {"horizon": self.planner.n_planned, "std_bounds": self.planner.std_bounds}
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": ConstantSchedule(self.prior_optimizer.param_groups[0]["lr"]),
            **self._arguments,
            "planner": "mppi" if self.plans else "none",
            "planner_kwargs": {**self._arguments["planner_kwargs"], **now},
            "max_plan_seconds": self.max_plan_seconds,
        }

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Plan; or, with ``planner="none"``, act by the policy prior.

        :param observation: observation of one environment, or of B
        :param state: the state that the last call returned; None: plan from scratch
        :param episode_start: where a new episode begins, (B,)
        :param deterministic: execute the mean of the plan, or of the prior, instead of a sample, and let the planner draw the
            same samples each time
        :return: actions in the environment's scale, and the state for the next call
        :raises ValueError: the observation is not in the observation space, or ``state`` comes from other environments or from
            another policy
        """
        self.set_training_mode(False)
        if self.plans:
            return super().predict(observation, state, episode_start, deterministic)
        self.last_plan = self.last_states = None
        check_observation(observation)
        obs, vectorized = self.obs_to_tensor(observation)
        actions = to_environment(self._predict(obs, deterministic), self.action_space)
        return actions if vectorized else actions[0], state

    @th.no_grad()
    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """The policy prior's action, (B, A) in [-1, 1]."""
        z = self.model.start(observation)
        generators = None if deterministic else self._generators(th.zeros(len(z)), deterministic=False)
        return self.model.act(z, generators, deterministic)

    def _planner_for_call(self, deterministic: bool) -> LatentMPPI:
        return self.planner if deterministic else self.planner.exploring()

    def _proposals(self, states: th.Tensor, generators: list[th.Generator]) -> th.Tensor:
        return prior_proposals(self.model, states, self.n_proposals, self.planner.horizon, generators)


class MlpPolicy(LatentPolicy):
    """:class:`LatentPolicy` for flat observations."""

    @staticmethod
    def _check_observations(space: spaces.Space) -> None:
        if isinstance(space, spaces.Dict):
            raise ValueError(f"MlpPolicy takes flat observations; MultiInputPolicy takes Dict ones, got {space}.")
        if is_image_space(space):
            raise ValueError(f"MlpPolicy takes flat observations; CnnPolicy takes images, got {space}.")


class CnnPolicy(LatentPolicy):
    """:class:`LatentPolicy` for images, which are shifted at random while the model is trained."""

    features_extractor_default = PixelExtractor


class MultiInputPolicy(LatentPolicy):
    """:class:`LatentPolicy` for Dict observations."""

    features_extractor_default = CombinedExtractor

    @staticmethod
    def _check_observations(space: spaces.Space) -> None:
        if not isinstance(space, spaces.Dict):
            raise ValueError(
                f"MultiInputPolicy takes Dict observations; MlpPolicy takes flat ones, CnnPolicy images; got {space}."
            )
