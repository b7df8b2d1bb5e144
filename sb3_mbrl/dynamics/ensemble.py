"""The learned dynamics: an ensemble of probabilistic neural networks, stepped in batches."""

import pathlib
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch as th
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.utils import get_device

from sb3_mbrl.acceleration.precision import check_precision
from sb3_mbrl.common.actions import action_bounds, action_dim, executed, scale, unscale
from sb3_mbrl.common.arguments import BOOLEAN, NET_ARCH, SHARE, check_arguments, integer, list_of, number
from sb3_mbrl.common.model import Members, ModelStep
from sb3_mbrl.common.random import Generators, randint, randn
from sb3_mbrl.common.spaces import check_spaces
from sb3_mbrl.common.types import RewardFn, TerminationFn, Transitions
from sb3_mbrl.common.user_functions import call, probe
from sb3_mbrl.diagnostics.statistics import termination_scores
from sb3_mbrl.dynamics.agreement import Once, RewardAgreement, reward_agreement, termination_disagreement
from sb3_mbrl.dynamics.data import checked
from sb3_mbrl.dynamics.files import load_model, save_model
from sb3_mbrl.dynamics.fitting import FitReport, check_fit_arguments, fit
from sb3_mbrl.dynamics.learned_termination import LearnedTermination, step_budget
from sb3_mbrl.dynamics.networks import ACTIVATIONS, Networks, decay_per_layer
from sb3_mbrl.dynamics.normalizer import Normalizer
from sb3_mbrl.tasks.termination_rules import NeverTerminates

_ACCEPTED = {
    "ensemble_size": integer(1, 10**4),
    "n_elites": integer(1),
    "net_arch": NET_ARCH,
    "learning_rate": number(0),
    "weight_decay": number(0) | list_of(number(0)) | None,
    "probabilistic": BOOLEAN,
    "nll_beta": SHARE,
    "learn_logvar_bounds": BOOLEAN,
    "normalize_targets": BOOLEAN,
}


class Prediction(NamedTuple):
    """
    What every elite predicts: ``E`` elites, ``B`` rows, ``O`` observation dimensions, then the reward.

    :param mean: next observation and reward, (E, B, O + 1)
    :param variance: predicted (aleatoric) variance, (E, B, O + 1); zero for a deterministic ensemble
    """

    mean: th.Tensor
    variance: th.Tensor

    @property
    def epistemic_std(self) -> th.Tensor:
        """Disagreement: standard deviation over the elites of their means, (B, O + 1)."""
        return self.mean.std(dim=0, correction=0)

    @property
    def aleatoric_std(self) -> th.Tensor:
        """Noise: square root of the variance averaged over the elites, (B, O + 1)."""
        return self.variance.mean(dim=0).sqrt()


class ProbabilisticEnsemble(Networks):
    """
    Ensemble of Gaussian networks that predicts the change of the observation and the reward
    (Chua et al. 2018, https://arxiv.org/abs/1805.12114; default values as in the MBPO paper's code unless noted).
    All members are evaluated at once: one parameter tensor per layer, (members, inputs, outputs).

    Observations are raw, actions are scaled to [-1, 1] (one-hot if they are discrete), and all tensors are float32 on
    ``device``. A user's ``reward_fn`` and ``termination_fn`` receive actions in the scale of ``action_space`` (discrete ones
    stay one-hot).

    :param observation_space: flat Box, O dimensions
    :param action_space: Box with finite bounds, A dimensions (flattened), or Discrete with A actions
    :param ensemble_size: number of members (MBPO: 7)
    :param n_elites: members that step the model: those with the lowest holdout error (MBPO: 5)
    :param net_arch: hidden units per layer (MBPO: four layers of 200; 400 for Humanoid)
    :param activation: one of silu (MBPO), relu, tanh, elu, gelu
    :param learning_rate: learning rate of Adam (MBPO: 1e-3)
    :param weight_decay: coupled L2 on the weights of each layer, never on biases (MBPO's code:
        2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4); one number applies to all layers. None takes MBPO's five numbers,
        interpolated if there are not five layers
    :param probabilistic: predict a variance and train by likelihood; False gives a deterministic ensemble,
        trained by squared error
    :param nll_beta: each row's likelihood is weighted by its predicted variance to this power, in [0, 1] (Seitzer et al. 2022,
        https://arxiv.org/abs/2203.09168, who recommend 0.5). 0 is the plain likelihood of the paper, with which a single
        surprising transition dominates the updates of a confident model
    :param learn_logvar_bounds: learn the bounds of the log-variance, as the paper's code does; other
        implementations freeze them
    :param normalize_targets: also z-score the change of the observation and the reward. The paper's code does not. Where the
        reward is far larger than the changes of the observation (Pendulum), the first fits without it stall at a tenth
        of the accuracy
    :param precision: number format of products between hidden layers during a fit, ``"float32"`` or ``"bfloat16"``;
        parameters, inputs and outputs are float32. It is not saved
    :param reward_fn: the reward, if known; learned otherwise
    :param termination_fn: the termination, if known (a function, or a :class:`LearnedTermination`).
        None: the task never terminates, and a fit to data with a termination is an error
    :param generator: source of the initial weights; None draws from PyTorch's global stream
    :param device: device of the parameters
    :raises ValueError: spaces, sizes or names are not supported
    """

    holdout_mse: th.Tensor
    _n_fitted: th.Tensor
    action_low: th.Tensor
    action_high: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        ensemble_size: int = 7,
        n_elites: int = 5,
        net_arch: Sequence[int] = (200, 200, 200, 200),
        activation: str = "silu",
        learning_rate: float = 1e-3,
        weight_decay: float | Sequence[float] | None = None,
        probabilistic: bool = True,
        nll_beta: float = 0.5,
        learn_logvar_bounds: bool = True,
        normalize_targets: bool = True,
        precision: str = "float32",
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | None = None,
        generator: th.Generator | None = None,
        device: th.device | str = "auto",
    ):
        check_spaces(observation_space, action_space)
        check_arguments(locals(), _ACCEPTED)
        if n_elites > ensemble_size:
            raise ValueError(
                f"n_elites must lie between 1 and ensemble_size={ensemble_size}, got {n_elites}: "
                "elites are the best members of the ensemble."
            )
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}.")
        check_precision(precision, get_device(device))
        dims = int(np.prod(observation_space.shape)), action_dim(action_space)  # type: ignore[arg-type]
        super().__init__(
            n_inputs=sum(dims),
            n_outputs=dims[0] + 1,  # the change of the observation, then the reward
            members=ensemble_size,
            net_arch=net_arch,
            activation=activation,
            probabilistic=probabilistic,
            nll_beta=nll_beta,
            learn_logvar_bounds=learn_logvar_bounds,
            precision=precision,
            generator=generator,
        )
        self.observation_space = observation_space
        self.action_space = action_space
        self.observation_dim, self.action_dim = dims
        self.n_elites = n_elites
        self.learning_rate = learning_rate
        self.weight_decay = decay_per_layer(weight_decay, n_layers=len(net_arch) + 1)
        self.normalize_targets = normalize_targets
        self.reward_fn = reward_fn
        self.termination_fn = NeverTerminates() if termination_fn is None else termination_fn

        self.input_normalizer = Normalizer(self.observation_dim + self.action_dim)
        self.target_normalizer = Normalizer(self.output_dim)
        # Errors that rank the members, and the number of transitions. As float buffers both are saved with the weights, and
        # code that does arithmetic on every entry of a state dict works
        self.register_buffer("holdout_mse", th.full((ensemble_size,), float("inf")))
        self.register_buffer("_n_fitted", th.zeros(()))
        low, high = action_bounds(action_space)
        self.register_buffer("action_low", low, persistent=False)
        self.register_buffer("action_high", high, persistent=False)
        self.to(get_device(device))
        self.optimizer = self._make_optimizer()

        probe(observation_space, action_space, self.device, reward_fn=reward_fn, termination_fn=termination_fn)
        self._once = Once()  # each disagreement of a function with the data is reported once

    def _make_optimizer(self) -> th.optim.Adam:
        """Adam rather than AdamW: its coupled weight decay equals the paper's penalty of 0.5 * decay * ||W||^2 in the loss."""
        groups: list[dict[str, Any]] = [
            {"params": [weight], "weight_decay": decay} for weight, decay in zip(self.weights, self.weight_decay, strict=True)
        ]
        groups.append({"params": list(self.biases)})
        if self.probabilistic and self.learn_logvar_bounds:
            groups.append({"params": [self.max_logvar, self.min_logvar]})
        return th.optim.Adam(groups, lr=self.learning_rate, fused=True)

    def __repr__(self) -> str:
        """The sizes and the last fit, instead of all modules and parameters."""
        sizes = {
            "observation_dim": self.observation_dim,
            "action_dim": self.action_dim,
            "ensemble_size": self.ensemble_size,
            "n_elites": self.n_elites,
            "net_arch": self.net_arch,
        }
        fit = "not fitted"
        if self.is_fitted:
            fit = f"n_fitted={self.n_fitted}, holdout_mse={self.holdout_mse[self.elites].mean().item():.3g}"
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in sizes.items())}, {fit})"

    @property
    def device(self) -> th.device:
        return self.holdout_mse.device

    @property
    def is_fitted(self) -> bool:
        """Whether the model has been fitted to data."""
        return bool(th.isfinite(self.holdout_mse).all())

    @property
    def n_fitted(self) -> int:
        """Number of transitions of the last fit, 0 if there was none; stored as a float32, so rounded above 16 million."""
        return int(self._n_fitted)

    @n_fitted.setter
    def n_fitted(self, n_transitions: int) -> None:
        self._n_fitted.fill_(n_transitions)

    @property
    def elites(self) -> th.Tensor:
        """Members with the lowest holdout error, best first, (n_elites,) long."""
        return self.holdout_mse.argsort()[: self.n_elites]

    def scale_action(self, action: th.Tensor) -> th.Tensor:
        """
        :param action: in the environment's scale, (..., A)
        :return: in [-1, 1], (..., A)
        """
        return scale(action, self.action_low, self.action_high)

    def unscale_action(self, action: th.Tensor) -> th.Tensor:
        """
        :param action: in [-1, 1], (..., A)
        :return: in the environment's scale, (..., A)
        """
        return unscale(action, self.action_low, self.action_high)

    def inputs_and_targets(self, transitions: Transitions) -> tuple[th.Tensor, th.Tensor]:
        """
        :param transitions: N transitions
        :return: un-normalised inputs (N, O + A) and targets (N, O + 1)
        """
        inputs = th.cat([transitions.observations, transitions.actions], dim=-1)
        change = transitions.next_observations - transitions.observations
        if self.reward_fn is not None:  # a known reward is not learned: a constant column has no error
            return inputs, F.pad(change, (0, 1))
        return inputs, th.cat([change, transitions.rewards.unsqueeze(-1)], dim=-1)

    def fit(self, transitions: Transitions, generator: th.Generator | None = None, **kwargs: Any) -> FitReport:
        """
        Train on all of ``transitions``, starting from the current weights and optimizer state, and choose the elites
        anew. See :func:`sb3_mbrl.dynamics.fitting.fit` for the arguments.

        A ``reward_fn`` and a ``termination_fn`` are compared with the transitions. A warning, once for each function, reports
        terminations that differ from the real ones, or a reward on another scale. A reward that differs in another way may
        be intended, so it is only noted in the report.

        :param transitions: every real transition so far
        :param generator: source of the holdout split, the bootstrap and the shuffling
        :return: errors and cost of this fit
        :raises ValueError: an argument is out of its range, the data or a ``reward_fn`` is not finite, or ``termination_fn``
            predicts none of the real terminations, or is the rule of a known task that disagrees with them
        """
        check_fit_arguments(kwargs)
        transitions = checked(transitions, self.observation_dim, self.action_dim)
        reward, termination = self._compare_rewards(transitions), self._compare_terminations(transitions)
        report = fit(self, transitions, generator, **kwargs)
        if isinstance(self.termination_fn, LearnedTermination):
            budget = step_budget(report.n_gradient_steps, kwargs.get("max_gradient_steps"))
            in_env_scale = replace(transitions, actions=self.unscale_action(transitions.actions))
            termination = self.termination_fn.fit(in_env_scale, generator, max_gradient_steps=budget)
        report = replace(report, termination_precision=termination["precision"], termination_recall=termination["recall"])
        if reward is None:
            return report
        has_note = not (reward.agrees or reward.wrong_scale) and self._once(self.reward_fn, "another reward")
        return replace(report, reward_mse=reward.mse, reward_agrees=reward.agrees, note=reward.text if has_note else "")

    def _compare_rewards(self, transitions: Transitions) -> RewardAgreement | None:
        """Compare a ``reward_fn`` with the real rewards; None if the reward is learned."""
        if self.reward_fn is None:
            return None
        with th.no_grad():
            obs, next_obs = transitions.observations, transitions.next_observations
            given = self._known_reward(self.reward_fn, obs, transitions.actions, next_obs)
        agreement = reward_agreement(given, transitions.rewards)
        if agreement.wrong_scale and self._once(self.reward_fn, "wrong scale"):
            warnings.warn(agreement.text, stacklevel=3)
        return agreement

    def _compare_terminations(self, transitions: Transitions) -> dict[str, float]:
        """
        Compare a ``termination_fn`` with the real terminations. Return its precision and recall, nothing if it is learned.
        """
        if isinstance(self.termination_fn, LearnedTermination):
            return {}
        predicted = self.predict_termination(transitions)
        disagreement = termination_disagreement(self.termination_fn, predicted, transitions.terminated)
        if disagreement is not None and self._once(self.termination_fn, "wrong"):
            warnings.warn(disagreement, stacklevel=3)
        return termination_scores(predicted, transitions.terminated)

    def predict_termination(self, transitions: Transitions) -> th.Tensor:
        """
        :param transitions: N transitions, actions in [-1, 1]
        :return: terminations according to the termination function, (N,) bool
        """
        with th.no_grad():
            return self._terminated(transitions.observations, transitions.actions, transitions.next_observations)

    def _terminated(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        return call("termination_fn", self.termination_fn, obs, self.unscale_action(action), next_obs)

    def _known_reward(self, reward_fn: RewardFn, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        return call("reward_fn", reward_fn, obs, self.unscale_action(action), next_obs)

    def start(self, obs: th.Tensor) -> th.Tensor:
        """
        :param obs: raw observations of the environment, (B, O)
        :return: states to step from: the same observations, float32, on the device
        """
        return obs.to(self.device, th.float32)

    def observe(self, states: th.Tensor) -> th.Tensor:
        """
        :param states: states, which are raw observations, (B, O)
        :return: the same tensor
        """
        return states

    def sample_members(self, n: int, generator: Generators = None) -> th.Tensor:
        """
        :param n: number of rows
        :param generator: None draws from PyTorch's global stream
        :return: an elite for each row, drawn uniformly, (n,) long
        """
        return self.elites[randint(self.n_elites, (n,), generator, self.device)]

    def predict(self, obs: th.Tensor, action: th.Tensor) -> Prediction:
        """
        The prediction of every elite. Differentiable.

        :param obs: raw observations, (B, O)
        :param action: in [-1, 1], (B, A)
        :return: means and variances of the next observation and the reward, (n_elites, B, O + 1) each
        """
        inputs = self.input_normalizer(th.cat([obs, action], dim=-1))
        elites = self.elites.unsqueeze(1).expand(-1, len(inputs))
        mean, logvar = self._split_head(self._forward_rows(inputs, elites))
        return Prediction(self._to_raw(mean, obs), logvar.exp() * self.target_normalizer.std**2)

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
        Imagine one step of B rows. Differentiable: samples are reparameterised.

        :param obs: raw observations, (B, O)
        :param action: in [-1, 1], (B, A)
        :param generator: source of members and noise; None draws from PyTorch's global stream
        :param members: which member predicts each row. ``"random"``: an elite drawn for each row and step (TS1 of
            Chua et al. 2018, MBPO's choice); a (B,) tensor from :meth:`sample_members`, which a caller keeps for a whole
            branch (TS-infinity); ``"expectation"``: the average of the elites' means, without noise
        :param deterministic: return the member's mean instead of a sample
        :param uncertainty: also return epistemic and aleatoric standard deviations, which requires evaluating all elites
        :return: next observation, reward and termination of each row
        """
        _check_members(members, len(obs))
        if isinstance(members, str) and members == "random":
            members = self.sample_members(len(obs), generator)
        action = executed(action, self.action_space, self.action_low, self.action_high)
        prediction = self.predict(obs, action) if uncertainty or not isinstance(members, th.Tensor) else None
        if isinstance(members, th.Tensor):
            output = self._sample(obs, action, members, generator, deterministic)
        else:
            assert prediction is not None
            output = prediction.mean.mean(dim=0)

        next_obs, reward = output[:, :-1], output[:, -1]
        if self.reward_fn is not None:
            reward = self._known_reward(self.reward_fn, obs, action, next_obs)
        terminated = self._terminated(obs, action, next_obs)
        if not uncertainty:
            return ModelStep(next_obs, reward, terminated)
        assert prediction is not None
        return ModelStep(next_obs, reward, terminated, prediction.epistemic_std, prediction.aleatoric_std)

    def _sample(
        self, obs: th.Tensor, action: th.Tensor, members: th.Tensor, generator: Generators, deterministic: bool
    ) -> th.Tensor:
        """Next observation and reward of each row according to its member, (B, O + 1); the mean if ``deterministic``."""
        head = self._forward_rows(self.input_normalizer(th.cat([obs, action], dim=-1)), members)
        mean = head[:, : self.output_dim]
        if self.probabilistic and not deterministic:
            mean = mean + self._std(head) * randn(mean.shape, generator, mean.device)
        return self._to_raw(mean, obs)

    def _to_raw(self, output: th.Tensor, obs: th.Tensor) -> th.Tensor:
        """Normalised change and reward -> raw next observation and reward."""
        return self.target_normalizer.inverse(output) + F.pad(obs, (0, 1))

    def save(self, path: str | pathlib.Path) -> None:
        """
        Save as one safetensors file whose header carries the configuration as JSON and a digest of everything. Atomic.
        Functions of the user are not saved: pass them again to :meth:`load`.

        :param path: the file; its folder is created if needed
        :raises ValueError: the model has diverged; an existing file is left unchanged
        """
        save_model(self, path)

    @classmethod
    def load(
        cls,
        path: str | pathlib.Path,
        device: th.device | str = "auto",
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | None = None,
    ) -> "ProbabilisticEnsemble":
        """
        Load what :meth:`save` wrote. Nothing is unpickled, and a file that was changed since is refused.

        :param path: the file
        :param device: device of the parameters
        :param reward_fn: needed again if the model was saved with a user's reward function
        :param termination_fn: needed again if the model was saved with a user's termination function; otherwise it
            replaces the one that was saved
        :return: the model
        :raises ValueError: the file is damaged or holds something else, or a function is missing
        """
        return load_model(cls, path, device, reward_fn, termination_fn)


def _check_members(members: Members, n_rows: int) -> None:
    if isinstance(members, str) and members not in ("random", "expectation"):
        raise ValueError(f"members must be 'random', 'expectation' or a tensor of members, got {members!r}.")
    if isinstance(members, th.Tensor) and members.shape != (n_rows,):
        raise ValueError(f"members must have shape ({n_rows},), one for each row, got {tuple(members.shape)}.")
