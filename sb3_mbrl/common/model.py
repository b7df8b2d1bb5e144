"""The interface of transition models: they step a batch of states."""

from typing import Any, Literal, NamedTuple, Protocol

import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_mbrl.common.arguments import one_of
from sb3_mbrl.common.random import Generators

Members = th.Tensor | Literal["random", "expectation"]
"""How an ensemble is propagated: ``"random"`` draws an elite for each state and step (TS1 of Chua et al. 2018); a (B,) tensor
of members, kept over a branch, is TS-infinity; ``"expectation"`` averages the elites. Other models ignore it."""


PROPAGATION = one_of("ts1", "tsinf", "expectation")
"""Names of ways to propagate an ensemble: TS1 and TS-infinity of Chua et al. 2018, or the elites' average."""

SPREAD_SIGNS = {"expected": 0, "pessimistic": -1, "optimistic": 1}
"""Ways to value an uncertain quantity: its mean, or a lower or an upper confidence bound, ``mean + sign * kappa * spread``."""

VALUE_MODE = one_of(*SPREAD_SIGNS)


class ModelStep(NamedTuple):
    """
    One imagined step of ``B`` states.

    :param next_obs: raw next observation, (B, O), or the next state, (B, S), of a model whose states are something else
    :param reward: (B,)
    :param terminated: the task ended, (B,) bool
    :param epistemic_std: disagreement of the elites' means per output, (B, O + 1) with the reward last;
        None unless asked for
    :param aleatoric_std: mean predicted noise per output, (B, O + 1) with the reward last; None unless asked for
    """

    next_obs: th.Tensor
    reward: th.Tensor
    terminated: th.Tensor
    epistemic_std: th.Tensor | None = None
    aleatoric_std: th.Tensor | None = None

    @property
    def disagreement(self) -> th.Tensor:
        """
        How far the elites disagree about the next observation, (B,): the Euclidean norm, over its entries, of the standard
        deviations of their means, in the raw observation's units.

        :raises ValueError: the model returned no uncertainty
        """
        if self.epistemic_std is None:
            raise ValueError(
                "This model returns no uncertainty; an ensemble does. Leave uncertainty_penalty at 0, max_disagreement at "
                "None and value_mode at 'expected'."
            )
        return self.epistemic_std[:, :-1].norm(dim=1)


class SteppableModel(Protocol):
    """A model that steps a batch of states: a learned ensemble, a latent world model, a simulator, or your own."""

    def step(
        self,
        obs: th.Tensor,
        action: th.Tensor,
        generator: Generators = None,
        members: Members = "random",
        deterministic: bool = False,
        uncertainty: bool = False,
    ) -> ModelStep:
        """
        :param obs: the states to step, (B, S): raw observations, unless the model's :meth:`~DynamicsModel.start` returns
            something else
        :param action: in [-1, 1], (B, A); one-hot for discrete actions
        :param generator: source of members and noise
        :param members: how an ensemble is propagated
        :param deterministic: return means instead of samples
        :param uncertainty: also return epistemic and aleatoric standard deviations
        :return: the next step of each state
        """


class DynamicsModel(SteppableModel, Protocol):
    """
    A model to plan in. The states that it steps need not be observations: a simulator steps physical states, a latent model
    latent states.
    """

    @property
    def observation_space(self) -> spaces.Space:
        """The observation space of the environment."""

    @property
    def action_space(self) -> spaces.Space:
        """The action space of the environment: Box with finite bounds, or Discrete."""

    @property
    def action_dim(self) -> int:
        """A: dimensions of the action, or the number of discrete actions."""

    @property
    def device(self) -> th.device:
        """Device of the states."""

    @property
    def elites(self) -> th.Tensor:
        """Members that step the model, best first, (E,) long; ``[0]`` for a model that is not an ensemble."""

    def start(self, obs: Any) -> th.Tensor:
        """
        :param obs: raw observations, (B, O), or images or dicts for models that encode them: those of all environments, in
            their order, even if only some need a plan
        :return: states to step from, valid until the next call, (B, S)
        """

    def unscale_action(self, action: th.Tensor) -> th.Tensor:
        """
        :param action: in [-1, 1] or one-hot, (..., A)
        :return: in the environment's scale; one-hot stays one-hot, (..., A)
        """

    def observe(self, states: th.Tensor) -> th.Tensor:
        """
        :param states: (B, S)
        :return: the raw observations that the environment would give there, (B, O)
        """


def dynamics_of(model: DynamicsModel | BaseAlgorithm) -> DynamicsModel:
    """
    :param model: a model, or an algorithm that has learned one as its ``dynamics``
    :return: the model
    :raises ValueError: it is neither
    """
    if isinstance(model, BaseAlgorithm):
        if not hasattr(model, "dynamics"):
            raise ValueError(
                f"{type(model).__name__} has no learned dynamics that can be used without it; MBPO, PETS and Dyna have. Pass "
                "one of these, or a model."
            )
        return model.dynamics  # type: ignore[no-any-return]
    if isinstance(model, type) or not all(callable(getattr(model, name, None)) for name in ("start", "step", "observe")):
        given = f"the class {model.__name__}" if isinstance(model, type) else f"an object of type {type(model).__name__}"
        raise ValueError(
            f"A model of the dynamics is needed, got {given}. Pass a ProbabilisticEnsemble, an algorithm that has learned "
            "one, or SimulatorModel(env), the true environment as a model."
        )
    return model


def check_fitted(model: DynamicsModel) -> None:
    """
    :param model: a model of the dynamics; one that does not learn counts as fitted
    :raises ValueError: it has not been fitted
    """
    if not getattr(model, "is_fitted", True):
        raise ValueError(
            "The model has not been fitted to data, so its predictions are noise. Call its fit(transitions) first, or learn() "
            "of the algorithm that it belongs to; from_env() of imagined environments collects data and fits."
        )
