"""Tabular Dyna-Q: the updates of the book, with SB3's interface."""

from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_mbrl import DynaQ


class Corridor(gym.Env):
    """
    A row of cells. The last one has reward 1 and ends the episode. Action 1 goes right, action 0 stays.

    :param n: number of cells
    :param slip: probability to stay in spite of action 1
    """

    metadata: ClassVar[dict] = {"render_modes": []}

    def __init__(self, n=5, slip=0.0):
        self.observation_space, self.action_space = spaces.Discrete(n), spaces.Discrete(2)
        self.slip = slip

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = 0
        return self.cell, {}

    def step(self, action):
        if self.np_random.random() >= self.slip:
            self.cell += int(action)
        done = self.cell == self.observation_space.n - 1
        return self.cell, float(done), done, False, {}


def corridor(n=5, slip=0.0, limit=100):
    return Monitor(TimeLimit(Corridor(n, slip), limit))


def lake(**kwargs):
    return Monitor(gym.make("FrozenLake-v1", is_slippery=False, **kwargs))


def test_without_planning_it_is_q_learning():
    model = DynaQ("TabularPolicy", corridor(), learning_rate=0.5, planning_steps=0, seed=0)
    model.learn(1000, callback=StopTrainingOnMaxEpisodes(1))
    # The reward has come one step back, and no further
    assert model.policy.q[3, 1] == 0.5
    assert np.count_nonzero(model.policy.q) == 1


def test_planning_carries_the_reward_to_the_beginning_within_an_episode():
    model = DynaQ("TabularPolicy", corridor(), learning_rate=0.5, planning_steps=200, seed=0)
    model.learn(1000, callback=StopTrainingOnMaxEpisodes(1))
    assert model.policy.q[0, 1] > 0
    assert (model.policy.q[:4].argmax(axis=1) == 1).all()


def test_values_become_those_of_the_optimal_policy():
    model = DynaQ("TabularPolicy", corridor(), gamma=0.9, learning_rate=0.5, planning_steps=50, epsilon=0.5, seed=0).learn(500)
    np.testing.assert_allclose(model.policy.q[:4, 1], 0.9 ** np.arange(3, -1, -1), atol=1e-6)
    np.testing.assert_allclose(model.policy.q[:4, 0], 0.9 ** np.arange(4, 0, -1), atol=1e-6)
    assert (model.policy.q[4] == 0).all()


def test_the_model_draws_outcomes_as_often_as_they_followed():
    model = DynaQ("TabularPolicy", corridor(slip=0.25), planning_steps=0, epsilon=1.0, seed=0).learn(4000)
    counts = model.model[0 * 2 + 1]
    assert set(counts) == {(0, 0.0, False), (1, 0.0, False)}
    assert counts[0, 0.0, False] / sum(counts.values()) == pytest.approx(0.25, abs=0.05)

    # Planning alone evaluates the slipping corridor: value iteration by samples
    model.planning_steps, model.gamma = 40_000, 0.9
    model.learning_rate = 0.02
    model._setup_lr_schedule()
    model._plan()
    values = [1.0]
    for _ in range(4):  # q = p(V' + ...) solved for staying: V = p r/(1 - gamma (1 - p))
        values.append(0.75 * (1.0 if len(values) == 1 else 0.9 * values[-1]) / (1 - 0.9 * 0.25))
    np.testing.assert_allclose(model.policy.q[:4, 1], values[:0:-1], atol=0.08)


def test_a_time_limit_is_no_termination():
    model = DynaQ("TabularPolicy", corridor(n=3, limit=1), epsilon=1.0, seed=0).learn(50)
    assert not any(terminated for counts in model.model for _, _, terminated in counts)
    # The state after the step, not the first one of the next episode
    assert set(model.model[1]) == {(1, 0.0, False)}


def test_more_planning_needs_fewer_real_steps():
    real = []
    for n in (0, 50):
        env = Monitor(gym.make("CliffWalking-v1"))
        DynaQ("TabularPolicy", env, planning_steps=n, seed=1).learn(10_000, callback=StopTrainingOnMaxEpisodes(8))
        real.append(env.get_total_steps())
    assert real[1] < real[0] / 2


def test_evaluate_policy_and_callbacks():
    env = make_vec_env(lake, n_envs=3, seed=0)
    callback = EvalCallback(make_vec_env(lake), n_eval_episodes=1, eval_freq=200, verbose=0)
    model = DynaQ("TabularPolicy", env, planning_steps=20, seed=0).learn(3_000, callback=callback)
    assert model.num_timesteps == 3_000 and callback.last_mean_reward == 1.0
    assert evaluate_policy(model, env, n_eval_episodes=3) == (1.0, 0.0)


def test_predict():
    model = DynaQ("TabularPolicy", lake(), seed=0)
    assert [model.predict(3, deterministic=True)[0] for _ in range(10)] == [0] * 10
    # Ties are broken at random
    assert set(model.predict(np.zeros(60, dtype=int))[0]) == {0, 1, 2, 3}


def test_equal_seeds_give_equal_runs():
    runs = [DynaQ("TabularPolicy", lake(), seed=seed).learn(500).policy.q for seed in (3, 3, 4)]
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])


def test_a_saved_run_continues_as_if_it_had_not_been_saved(tmp_path):
    whole = DynaQ("TabularPolicy", corridor(n=8), seed=0)
    whole.learn(300, callback=StopTrainingOnMaxEpisodes(2))
    whole.save(tmp_path / "model")
    whole.learn(200, reset_num_timesteps=False)

    env = corridor(n=8)
    loaded = DynaQ.load(tmp_path / "model", env=env, force_reset=True)
    loaded.learn(200, reset_num_timesteps=False)
    # This environment begins where an episode had just ended
    assert np.array_equal(loaded.policy.q, whole.policy.q)
    assert loaded.model == whole.model


def test_it_loads_to_predict(tmp_path):
    model = DynaQ("TabularPolicy", lake(), seed=0).learn(1_000)
    model.save(tmp_path / "model")
    states = np.arange(16)
    assert np.array_equal(
        DynaQ.load(tmp_path / "model").predict(states, deterministic=True)[0], model.predict(states, deterministic=True)[0]
    )


def test_what_is_logged(tmp_path):
    DynaQ("TabularPolicy", lake(), seed=0, tensorboard_log=str(tmp_path)).learn(500, log_interval=5)
    events = EventAccumulator(str(tmp_path / "DynaQ_1"))
    events.Reload()
    assert {"rollout/ep_rew_mean", "rollout/ep_len_mean", "dyna/known_pairs", "time/fps"} <= set(events.Tags()["scalars"])


def test_observations_that_no_table_can_hold_are_refused():
    with pytest.raises(ValueError, match="observation_space must be Discrete"):
        DynaQ("TabularPolicy", "CartPole-v1")
