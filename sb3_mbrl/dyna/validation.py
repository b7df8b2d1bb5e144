"""Imagined returns of the policy that Dyna trains: is it still improving, and do real returns confirm them?"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_mbrl.algorithms.learning import LearnsDynamics
from sb3_mbrl.common.environments import time_limit
from sb3_mbrl.common.trajectories import initial_rows

EPISODES_PER_MEMBER = 4
"""Imagined episodes on each member of the ensemble in a validation of the policy."""

VALIDATION_FREQ = 5
"""Rollouts of an on-policy algorithm between two validations."""

MIN_SHARE_BETTER = 0.7
"""A round continues as long as the policy improved on at least this share of the members (ME-TRPO)."""


class ValidatesItsAgent(LearnsDynamics):
    """
    Mixin of :class:`~sb3_mbrl.Dyna`: it lets the agent play whole episodes in the model, and compares their returns with those
    of real episodes.
    """

    agent: BaseAlgorithm

    _promised: tuple[float, float, int] | None = None
    """Imagined return of the policy that acts now: its mean, its standard deviation, and the length of an episode."""

    _episodes_before = 0
    """Number of real episodes when the last round ended."""

    @abstractmethod
    def _imagined(self, n_envs: int, start_states: Any, max_episode_steps: int | None, **arguments: Any) -> VecEnv:
        """Environments in the model, normalised as the real ones are now."""

    @abstractmethod
    def _imagined_episode_length(self) -> int:
        """Steps until an imagined episode is truncated."""

    def _validate(self) -> np.ndarray:
        """Mean return of the policy on each elite, (n_elites,)."""
        length = time_limit(self.env) or self._imagined_episode_length()
        return self._imagined_returns(length, deterministic=True).mean(axis=1)

    def _imagined_returns(self, max_episode_steps: int, deterministic: bool) -> np.ndarray:
        """
        :param max_episode_steps: steps until an imagined episode is truncated
        :param deterministic: False: the agent explores
        :return: returns of whole episodes from real first states, neither penalised nor normalised,
            (n_elites, EPISODES_PER_MEMBER)
        """
        assert self.replay_buffer is not None
        n_elites = len(self.dynamics.elites)
        n_envs = n_elites * EPISODES_PER_MEMBER
        starts = "initial" if len(initial_rows(self.replay_buffer)) > 0 else "all"
        env = self._imagined(n_envs, starts, max_episode_steps, norm_reward=False, propagation="tsinf", stagger=False)
        env.seed(0)  # the same starts and noise in each call, so that differences are due to the policy
        obs = env.reset()
        env.unwrapped.imagination.members = self.dynamics.elites.repeat_interleave(EPISODES_PER_MEMBER)  # type: ignore
        returns, running = np.zeros(n_envs), np.ones(n_envs, dtype=bool)
        state, begins = None, np.ones(n_envs, dtype=bool)
        while running.any():
            actions, state = self.agent.predict(obs, state, begins, deterministic)  # type: ignore[arg-type]
            obs, rewards, begins, _ = env.step(actions)
            returns += running * rewards
            running &= ~begins
        return returns.reshape(n_elites, EPISODES_PER_MEMBER)

    def _promise(self, comparable: bool) -> None:
        """
        Store the imagined return of the policy that acts from now on, over episodes as long as the real ones.

        :param comparable: whether the model and the environment have the same reward
        """
        length = self._episode_length()
        if length is None:
            self._promised = None
            return
        returns = self._imagined_returns(length, deterministic=False)
        self._promised = (float(returns.mean()), float(returns.std()), length) if comparable else None
        self._log({"imagination/return_mean": float(returns.mean())})

    def _episode_length(self) -> int | None:
        """
        :return: the time limit; if it is not known, because the environment truncates itself, the length of the longest of the
            latest episodes; None: no episode has ended yet
        """
        assert self.ep_info_buffer is not None
        return time_limit(self.env) or max((int(episode["l"]) for episode in self.ep_info_buffer), default=None)

    def _compare_with_reality(self) -> None:
        """
        Log the difference between the imagined return and that of the real episodes since then, and raise the alarm if it is
        large.
        """
        episodes = self._episodes_of_this_round()
        if self._promised is not None and self._are_as_long_as_promised([int(episode["l"]) for episode in episodes]):
            mean, std, _ = self._promised
            gap = mean - float(np.mean([episode["r"] for episode in episodes]))
            alarm = gap > 3 * std + 0.2 * abs(mean)
            self._log({"imagination/gap": gap, "imagination/alarm": float(alarm)})
            if alarm and self.verbose >= 1:
                print(
                    f"Step {self.num_timesteps}: the model promised a return of {mean:.4g}, reality gave {mean - gap:.4g}. "
                    "The policy exploits errors of the model: try a smaller max_episode_steps or an uncertainty_penalty."
                )
        self._episodes_before = self._episode_num

    def _episodes_of_this_round(self) -> list[dict[str, Any]]:
        """Real episodes since the last round, of which SB3 keeps at most ``stats_window_size``."""
        assert self.ep_info_buffer is not None
        n_episodes = min(self._episode_num - self._episodes_before, len(self.ep_info_buffer))
        return list(self.ep_info_buffer)[-n_episodes:] if n_episodes > 0 else []

    def _are_as_long_as_promised(self, lengths: list[int]) -> bool:
        """
        :param lengths: lengths of the episodes since the last round
        :return: whether all of them ended at the imagined length, or by a termination, which the model imagines too. The
            return of an episode that is longer, or was truncated earlier, cannot be compared with the imagined one
        """
        assert self._promised is not None and self.replay_buffer is not None
        promised, buffer = self._promised[2], self.replay_buffer
        n_rows = min(self._steps_since_fit() // self.n_envs, buffer.size())
        n_truncated = int(buffer.timeouts[(buffer.pos - 1 - np.arange(n_rows)) % buffer.buffer_size].sum())
        return len(lengths) > 0 and max(lengths) <= promised and n_truncated <= lengths.count(promised)


class StopWhenNoLongerBetter(BaseCallback):
    """
    Ends the round of an on-policy algorithm when, since the last validation, its policy improved on less than the share
    ``MIN_SHARE_BETTER`` of the members of the ensemble (ME-TRPO).

    :param validate: returns the mean return of the policy on each member, (n_members,)
    """

    def __init__(self, validate: Callable[[], np.ndarray]):
        super().__init__()
        self.validate = validate
        self.n_rollouts = 0
        self.stop = False

    def _on_training_start(self) -> None:
        self.returns = self.validate()

    def _on_rollout_start(self) -> None:
        if self.n_rollouts > 0 and self.n_rollouts % VALIDATION_FREQ == 0:
            before, self.returns = self.returns, self.validate()
            self.stop = bool(np.mean(self.returns > before) < MIN_SHARE_BETTER)
        self.n_rollouts += 1

    def _on_step(self) -> bool:
        return not self.stop
