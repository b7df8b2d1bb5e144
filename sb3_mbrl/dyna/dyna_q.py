"""Tabular Dyna-Q: Sutton & Barto (2018), section 8.2, http://incompleteideas.net/book/the-book-2nd.html."""

import time
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import safe_mean
from stable_baselines3.common.vec_env import VecEnv

from sb3_mbrl.algorithms.saves import AtomicSaves
from sb3_mbrl.common.arguments import DISCOUNT, OFF_POLICY, SHARE, check_arguments, integer, plain_arguments
from sb3_mbrl.common.environments import accepted_environment, check_constructed_with_env, check_has_env

SelfDynaQ = TypeVar("SelfDynaQ", bound="DynaQ")

Outcome = tuple[int, float, bool]
"""Next state, reward, and whether the task ended there."""

_RULES = {
    **{name: OFF_POLICY[name] for name in ("learning_rate", "stats_window_size", "verbose", "seed")},
    "gamma": DISCOUNT,
    "epsilon": SHARE,
    "planning_steps": integer(0, 10**7),
}


class TabularPolicy(BasePolicy):
    """
    Acts epsilon-greedily by a table of action values. ``deterministic`` actions are greedy, the first of equally good ones.

    :param observation_space: Discrete
    :param action_space: Discrete
    :param epsilon: share of random actions
    """

    def __init__(self, observation_space: spaces.Discrete, action_space: spaces.Discrete, epsilon: float):
        super().__init__(observation_space, action_space)
        self.epsilon = epsilon
        self.rng = np.random.default_rng()
        n_states, n_actions = int(observation_space.n), int(action_space.n)
        self.register_buffer("q_table", th.zeros(n_states, n_actions, dtype=th.float64))

    @property
    def q(self) -> np.ndarray:
        """The table, (states, actions) float64; writing to it changes the policy."""
        return self.q_table.numpy()  # type: ignore[operator]

    def explore(self, state: int) -> int:
        """
        :param state: a state
        :return: an epsilon-greedy action; equally good ones are drawn with equal probability
        """
        values = self.q[state]
        if self.rng.random() < self.epsilon:
            return int(self.rng.integers(len(values)))
        best = np.flatnonzero(values == values.max())
        return int(best[self.rng.integers(len(best))])

    def _predict(self, observation: th.Tensor, deterministic: bool = False) -> th.Tensor:  # type: ignore[override]
        states = observation.long().numpy()
        actions = self.q[states].argmax(axis=1) if deterministic else [self.explore(state) for state in states]
        return th.as_tensor(actions)


class DynaQ(AtomicSaves):
    """
    Tabular Dyna-Q (Sutton & Barto 2018, section 8.2), for small discrete environments. Each real step makes one update, is
    counted in the model, and is followed by ``planning_steps`` updates from transitions that the model imagines::

        DynaQ("TabularPolicy", "CliffWalking-v1", planning_steps=50).learn(5_000)

    The model is a table that counts, for each pair of state and action, how often each outcome followed. Outcomes are drawn in
    proportion to these counts; in a deterministic environment there is only one, which is the book's model. Time limits are
    not terminations: the value of the state at a time limit still counts.

    CliffWalking has no time limit. To evaluate a policy that may walk in circles, give it one
    (``gym.make("CliffWalking-v1", max_episode_steps=200)``).

    :param policy: ``"TabularPolicy"``
    :param env: Discrete observations and actions (FrozenLake, Taxi, CliffWalking); one environment or many
    :param learning_rate: step size alpha of an update, of real and of imagined transitions; it can be a function of the
        remaining progress (from 1 to 0)
    :param gamma: discount (the book's maze: 0.95)
    :param stats_window_size: Window size for the rollout logging
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param verbose: Verbosity level: 0 for no output, 1 for info messages
    :param seed: Seed for the pseudo random generators; equal seeds give equal runs
    :param device: has no effect: the tables are on the CPU
    :param epsilon: share of random actions while learning
    :param planning_steps: imagined updates after each real step, n of the book; 0 is Q-learning
    :param _init_setup_model: Whether or not to build the tables at the creation of the instance
    :raises ValueError: a space is not Discrete, or a number is out of its range
    """

    algorithm_name = "DynaQ"
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"TabularPolicy": TabularPolicy}

    policy: TabularPolicy

    def __init__(
        self,
        policy: str | type[TabularPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 0.1,
        *,
        gamma: float = 0.95,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        epsilon: float = 0.1,
        planning_steps: int = 10,
        _init_setup_model: bool = True,
    ):
        check_arguments(locals(), _RULES)
        super().__init__(
            policy,
            env,
            learning_rate,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device="cpu",
            support_multi_env=True,
            seed=seed,
        )
        self.gamma = gamma
        self.epsilon = epsilon
        self.planning_steps = planning_steps
        self.model: list[dict[Outcome, int]] = []  # how often each outcome followed; the index is state * n_actions + action
        self._known: list[int] = []  # indices of the model's entries that are not empty, from which planning draws
        self._rng: np.random.Generator | None = None
        if _init_setup_model:
            self._setup_model()

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        return BaseAlgorithm._wrap_env(accepted_environment(env), verbose, monitor_wrapper)

    def _setup_model(self) -> None:
        self._check_arguments()
        self._setup_lr_schedule()
        rng = self._rng  # that of a loaded model, which continues
        self.set_random_seed(self.seed)
        self._rng = rng or self._rng
        assert self._rng is not None
        self.policy = self.policy_class(self.observation_space, self.action_space, self.epsilon)  # type: ignore[assignment]
        self.policy.rng = self._rng
        self.model = self.model or [{} for _ in range(self.policy.q.size)]

    def _check_arguments(self) -> None:
        check_constructed_with_env(self)
        if not (isinstance(self.policy_class, type) and issubclass(self.policy_class, TabularPolicy)):
            raise ValueError(f"policy must be 'TabularPolicy' or a subclass of it, got {self.policy_class!r}.")
        vars(self).update(plain_arguments(vars(self), _RULES))
        for name in ("observation_space", "action_space"):
            space = getattr(self, name)
            if not isinstance(space, spaces.Discrete) or space.start != 0:
                raise ValueError(
                    f"DynaQ has a table of states and actions: {name} must be Discrete and start at 0, got {space}. For Box "
                    "observations train any algorithm in a LearnedModelVecEnv."
                )

    def set_random_seed(self, seed: int | None = None) -> None:
        super().set_random_seed(seed)
        self._rng = np.random.default_rng(seed)
        if hasattr(self, "policy"):  # SB3 sets the seeds before the policy is made
            self.policy.rng = self._rng

    def learn(
        self: SelfDynaQ,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        tb_log_name: str = "DynaQ",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDynaQ:
        """
        :param total_timesteps: real steps, over all environments
        :param callback: called after each step of all environments
        :param log_interval: episodes between two logs
        :param tb_log_name: name of the run in TensorBoard
        :param reset_num_timesteps: whether to count steps from 0 again; what was learned is kept
        :param progress_bar: whether to show a progress bar
        :return: this object
        """
        check_has_env(self)
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        assert self.env is not None
        callback.on_training_start(locals(), globals())
        while self.num_timesteps < total_timesteps:
            states = self._last_obs
            assert isinstance(states, np.ndarray)
            self._last_obs = None  # set again below; if an exception or Ctrl-C comes first, learn() starts new episodes
            actions = np.array([self.policy.explore(state) for state in states])
            new_obs, rewards, dones, infos = self.env.step(actions)
            self.num_timesteps += self.env.num_envs
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            self._update_info_buffer(infos, dones)

            for state, action, reward, obs, done, info in zip(states, actions, rewards, new_obs, dones, infos, strict=True):
                next_state = info["terminal_observation"] if done else obs
                terminated = done and not info.get("TimeLimit.truncated", False)
                outcome = (int(next_state), float(reward), bool(terminated))
                self._update(int(state), int(action), outcome)
                self._remember(int(state), int(action), outcome)
                self._plan()
            self._last_obs = new_obs  # type: ignore[assignment]

            callback.update_locals(locals())
            if not callback.on_step():
                break
            self._count_episodes(int(dones.sum()), log_interval)
        callback.on_training_end()
        return self

    def _update(self, state: int, action: int, outcome: Outcome) -> None:
        """One-step Q-learning."""
        next_state, reward, terminated = outcome
        q = self.policy.q
        target = reward if terminated else reward + self.gamma * q[next_state].max()
        q[state, action] += self.lr_schedule(self._current_progress_remaining) * (target - q[state, action])

    def _remember(self, state: int, action: int, outcome: Outcome) -> None:
        pair = state * self.policy.q.shape[1] + action
        counts = self.model[pair]
        is_new = len(counts) == 0
        counts[outcome] = counts.get(outcome, 0) + 1
        if is_new:  # added last, so that an interrupt leaves no pair without an outcome to plan from
            self._known.append(pair)

    def _plan(self) -> None:
        """Make updates from known pairs, drawn uniformly, and outcomes, drawn in proportion to how often they followed."""
        assert self._rng is not None
        for i in self._rng.integers(len(self._known), size=self.planning_steps):
            state, action = divmod(self._known[i], self.policy.q.shape[1])
            self._update(state, action, _draw(self.model[self._known[i]], self._rng))

    def _count_episodes(self, n: int, log_interval: int | None) -> None:
        before = self._episode_num
        self._episode_num += n
        if log_interval is not None and self._episode_num // log_interval > before // log_interval:
            self.dump_logs()

    def dump_logs(self) -> None:
        """Write the log."""
        assert self.ep_info_buffer is not None
        seconds = max((time.time_ns() - self.start_time) / 1e9, 1e-9)
        values: dict[str, Any] = {
            "time/episodes": self._episode_num,
            "time/fps": int((self.num_timesteps - self._num_timesteps_at_start) / seconds),
            "time/total_timesteps": self.num_timesteps,
            "dyna/known_pairs": len(self._known),
        }
        if len(self.ep_info_buffer) > 0:
            values["rollout/ep_rew_mean"] = safe_mean([episode["r"] for episode in self.ep_info_buffer])
            values["rollout/ep_len_mean"] = safe_mean([episode["l"] for episode in self.ep_info_buffer])
        for name, value in values.items():
            self.logger.record(name, value, exclude="tensorboard" if name.startswith("time/total") else None)
        self.logger.dump(step=self.num_timesteps)


def _draw(counts: dict[Outcome, int], rng: np.random.Generator) -> Outcome:
    outcomes = list(counts)
    if len(outcomes) == 1:
        return outcomes[0]
    cumulative = np.cumsum(list(counts.values()))
    return outcomes[int(np.searchsorted(cumulative, rng.integers(cumulative[-1]), side="right"))]
