"""MBPO: model-based policy optimization, https://arxiv.org/abs/1906.08253. Results: docs/modules/mbpo.md."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch as th
from sb3_contrib import TQC, CrossQ
from sb3_contrib.crossq.policies import MlpPolicy as CrossQMlpPolicy
from sb3_contrib.tqc.policies import MlpPolicy as TQCMlpPolicy
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.sac.policies import MlpPolicy, SACPolicy
from stable_baselines3.td3.policies import MlpPolicy as TD3MlpPolicy

from sb3_mbrl import acceleration
from sb3_mbrl.acceleration import sac as fused_sac
from sb3_mbrl.acceleration.precision import check_precision
from sb3_mbrl.common.normalization import normalize_obs
from sb3_mbrl.common.types import RewardFn, TerminationFn
from sb3_mbrl.dynamics import AdaptiveRolloutLength
from sb3_mbrl.mbpo.mixin import MBPOMixin


class MBPO(MBPOMixin, SAC):
    """
    Model-Based Policy Optimization (Janner et al. 2019): SAC that learns mostly from short rollouts imagined by an
    ensemble of learned dynamics, branched from real states.

    Paper: https://arxiv.org/abs/1906.08253; its code: https://github.com/jannerm/mbpo. The numbers of the paper per
    environment are in ``sb3_mbrl/zoo/hyperparams/mbpo.yml``. All arguments up to ``device`` are SAC's;
    ``learning_starts`` and ``gradient_steps`` have other defaults.

    :param policy: ``"MlpPolicy"`` or a SAC policy class
    :param env: flat Box observations of floats, Box actions with finite bounds; one environment or many
    :param learning_starts: environment steps of uniform random actions first (paper: 5000; 500 for the pendulums)
    :param gradient_steps: SAC updates per call of ``train``, the update-to-data ratio at one environment and
        ``train_freq=1`` (paper: 20; 40 for HalfCheetah, 10 for InvertedPendulum). Used as given: neither the number of
        environments nor ``train_freq`` scales it
    :param model_train_freq: environment steps between two refits of the model, each followed by imagination (paper: 250)
    :param model_updates_per_step: budget of a fit: at most this many gradient steps of the model per environment step
        since the last one; of the first fit, since the beginning. None: every fit runs to its end (paper)
    :param rollouts_per_step: imagined branches per environment step (paper: 400)
    :param rollout_schedule: imagined steps per branch: an integer; ``(start, end, min_length, max_length)`` in environment
        steps, warm-up included (paper's code on Hopper: ``(20_000, 150_000, 1, 15)``, warm-up not counted); or an
        :class:`~sb3_mbrl.dynamics.AdaptiveRolloutLength` or its arguments as a dict, which measures how far the model can be
        trusted
    :param model_retain_steps: the model buffer keeps the imagined transitions of this many environment steps (paper: 1000)
    :param real_ratio: share of real transitions in a batch, in [0, 1] (paper's code: 0.05). At 1 nothing
        imagined is used: training is plain SAC, and the model is still fitted
    :param branch_from: ``"all"`` branches from any real state, ``"initial"`` from first states of episodes (with a
        ``rollout_schedule`` as long as an episode: full-length imagination, the baseline that the paper argues against)
    :param deterministic_rollout: the model predicts means instead of samples
    :param one_member_per_branch: a branch keeps its elite (TS-infinity) instead of drawing one at each step (TS1, paper)
    :param reward_fn: the reward ``f(obs (B, O), action (B, A), next_obs (B, O)) -> (B,)`` on torch tensors, actions in the
        environment's scale; learned if None
    :param termination_fn: ``"auto"``: the environment's own rule where it is a known Gymnasium task, otherwise learned;
        ``"learned"``; a function ``f(obs, action, next_obs) -> (B,) bool``; None: the task never terminates
    :param dynamics_kwargs: arguments of :class:`~sb3_mbrl.dynamics.ProbabilisticEnsemble` (``ensemble_size``,
        ``n_elites``, ``net_arch``, ...)
    :param fit_kwargs: arguments of :func:`~sb3_mbrl.dynamics.fitting.fit` (``patience``, ``bootstrap``, ...)
    :param precision: number format of products between hidden layers while actor, critics and model are trained: ``"float32"``
        or ``"bfloat16"``; parameters, inputs and outputs are float32. bfloat16 is part of :mod:`sb3_mbrl.acceleration`, and
        needs the networks of ``"MlpPolicy"`` with ReLU, tanh or SiLU, without gSDE
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: an argument or a space is not supported; the message says what is
    """

    algorithm_name = "MBPO"
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": MlpPolicy}

    def __init__(
        self,
        policy: str | type[SACPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 1_000,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 20,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        ent_coef: str | float = "auto",
        target_update_interval: int = 1,
        target_entropy: str | float = "auto",
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        use_sde_at_warmup: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        *,
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
        precision: str = "float32",
        _init_setup_model: bool = True,
    ):
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__", "precision")}
        self.precision = precision  # set before the other constructors, because they set up the model
        super().__init__(**arguments)

    def _setup_model(self) -> None:
        check_precision(self.precision, self.device)
        super()._setup_model()
        if self.precision != "float32" and acceleration.enabled and not self._updates_are_fused():
            raise ValueError(
                f"precision={self.precision!r}: the networks of this policy, or the updates of {type(self).__name__}, are not "
                "those of SAC's MlpPolicy with ReLU, tanh or SiLU and without gSDE. They are trained by their own code, in "
                "float32. Use precision='float32'."
            )

    def _setup_dynamics(self, **arguments: Any) -> None:
        super()._setup_dynamics(precision=self.precision, **arguments)

    def _check_dynamics_arguments(self, *set_by_the_algorithm: str) -> None:
        super()._check_dynamics_arguments("precision", *set_by_the_algorithm)

    def _update(self, gradient_steps: int, batch_size: int) -> None:
        if self._updates_are_fused():
            fused_sac.train(self, gradient_steps, batch_size, self.precision)
        else:
            super()._update(gradient_steps, batch_size)

    def _updates_are_fused(self) -> bool:
        """Whether faster code can make the same updates: not if a class between MBPO and SAC overrides ``train``."""
        bases = type(self).__mro__
        after_mixin = bases[bases.index(MBPOMixin) + 1 :]
        trained_by = next(each for each in after_mixin if "train" in vars(each))
        return trained_by is SAC and fused_sac.supports(self)


class MBTQC(MBPOMixin, TQC):
    """
    MBPO over TQC (truncated mixture of quantile critics, https://arxiv.org/abs/2005.04269) instead of SAC. Takes the
    arguments of ``sb3_contrib.TQC``, and those of :class:`~sb3_mbrl.MBPO` from ``model_train_freq`` to ``fit_kwargs``.
    """

    algorithm_name = "MBTQC"
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": TQCMlpPolicy}

    def _setup_model(self) -> None:
        super()._setup_model()
        n_quantiles = self.critic.n_quantiles
        if self.top_quantiles_to_drop_per_net >= n_quantiles:
            raise ValueError(
                f"top_quantiles_to_drop_per_net={self.top_quantiles_to_drop_per_net} leaves no quantile of the n_quantiles="
                f"{n_quantiles} (policy_kwargs) of each critic: every target would be NaN."
            )


class MBCrossQ(MBPOMixin, CrossQ):
    """
    MBPO over CrossQ (batch normalisation instead of target networks, https://arxiv.org/abs/1902.05605) instead of SAC:
    few updates per environment step instead of many. Takes the arguments of ``sb3_contrib.CrossQ``, and those of
    :class:`~sb3_mbrl.MBPO` from ``model_train_freq`` to ``fit_kwargs``. CrossQ makes one update per step; here two are the
    default.
    """

    algorithm_name = "MBCrossQ"
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": CrossQMlpPolicy}
    own_defaults: ClassVar[dict[str, Any]] = {**MBPOMixin.own_defaults, "gradient_steps": 2}


class MBTD3(MBPOMixin, TD3):
    """
    MBPO over TD3 (https://arxiv.org/abs/1802.09477) instead of SAC. Takes the arguments of ``stable_baselines3.TD3``,
    and those of :class:`~sb3_mbrl.MBPO` from ``model_train_freq`` to ``fit_kwargs``. Imagined actions are TD3's target
    actions: those of the actor, with clipped noise.
    """

    algorithm_name = "MBTD3"
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": TD3MlpPolicy}

    def _sample_imagined_action(self, obs: th.Tensor) -> th.Tensor:
        action = self.actor(normalize_obs(obs, self._vec_normalize_env))
        noise = self.target_policy_noise * th.randn(action.shape, generator=self._generator, device=self.device)
        return (action + noise.clamp(-self.target_noise_clip, self.target_noise_clip)).clamp(-1, 1)
