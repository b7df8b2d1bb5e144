"""However ``learn`` is interrupted within a step, only transitions that happened are stored afterwards."""

from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_mbrl import MBPO, MBTD3, MBTQC, PETS, TDMPC, TDMPC2, Dyna, DynaQ, MBCrossQ
from sb3_mbrl.common.replay_buffers import end_trajectories, whole_rows
from sb3_mbrl.common.sequences import SequenceReplayBuffer
from sb3_mbrl.common.types import Transitions
from sb3_mbrl.mbpo.buffers import ModelReplayBuffer


class Clock(gym.Env):
    """Observations hold the number of the episode and of the step within it."""

    metadata: ClassVar[dict] = {"render_modes": []}

    def __init__(self, is_discrete=False):
        self.is_discrete = is_discrete
        box = spaces.Box(-1e6, 1e6, (2,), np.float32)
        self.observation_space = spaces.Discrete(10_000) if is_discrete else box
        self.action_space = spaces.Discrete(2) if is_discrete else spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.episode, self.age, self.breaks = 0, 0, False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.age = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action):
        self.age += 1
        if self.breaks:
            raise RuntimeError("broken")
        return self._observation(), 0.0, False, self.age == 12, {}

    def _observation(self):
        return 100 * self.episode + self.age if self.is_discrete else np.array([self.episode, self.age], np.float32)


SMALL = {"learning_starts": 1_000, "buffer_size": 100, "seed": 0, "device": "cpu"}
ALGORITHMS = {
    "mbpo": lambda env: MBPO("MlpPolicy", env, **SMALL),
    "mbpo-n-step": lambda env: MBPO("MlpPolicy", env, n_steps=3, **SMALL),
    "mbtqc": lambda env: MBTQC("MlpPolicy", env, **SMALL),
    "mbcrossq": lambda env: MBCrossQ("MlpPolicy", env, **SMALL),
    "mbtd3": lambda env: MBTD3("MlpPolicy", env, **SMALL),
    "tdmpc": lambda env: TDMPC("MlpPolicy", env, gamma=0.9, **SMALL),
    "tdmpc2": lambda env: TDMPC2("MlpPolicy", env, gamma=0.9, **SMALL),
    "pets": lambda env: PETS("MPCPolicy", env, **SMALL),
    "dyna": lambda env: Dyna(env=env, max_episode_steps=5, **SMALL),
}


def break_a_step(model, monkeypatch):
    """The step of the last environment fails after the others have made theirs."""
    monkeypatch.setattr(model.env.envs[-1].unwrapped, "breaks", True)
    return None


def interrupt_a_callback(model, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    return interrupt


def interrupt_the_storage(model, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "_update_info_buffer", interrupt)
    return None


WAYS = [break_a_step, interrupt_a_callback, interrupt_the_storage]


def clocks(n_envs, **kwargs):
    return DummyVecEnv([lambda: Clock(**kwargs)] * n_envs)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_stored_transition_has_happened(name, way, monkeypatch):
    model = ALGORITHMS[name](clocks(2)).learn(14)
    with monkeypatch.context() as patch, pytest.raises((RuntimeError, KeyboardInterrupt)):
        model.learn(10, way(model, patch), reset_num_timesteps=False)
    model.learn(20, reset_num_timesteps=False)
    buffer, n = model.replay_buffer, 7 + 10
    assert buffer.size() == n
    assert np.array_equal(buffer.next_observations[:n] - buffer.observations[:n], np.tile([0.0, 1.0], (n, 2, 1)))
    # Nor does a return of several steps go on over the gap
    assert buffer.dones[6].all() and buffer.timeouts[6].all()


@pytest.mark.parametrize("way", WAYS)
def test_the_table_of_dyna_q_keeps_the_transitions_that_happened(way, monkeypatch):
    model = DynaQ("TabularPolicy", clocks(2, is_discrete=True), planning_steps=1, seed=0).learn(14)
    with monkeypatch.context() as patch, pytest.raises((RuntimeError, KeyboardInterrupt)):
        model.learn(10, way(model, patch), reset_num_timesteps=False)
    model.learn(20, reset_num_timesteps=False)
    steps = [(pair // 2, outcome[0]) for pair in model._known for outcome in model.model[pair]]
    assert all(after == before + 1 for before, after in steps) and len(model._known) > 14


def test_an_interrupt_between_two_steps_loses_no_transition(monkeypatch):
    model = MBPO("MlpPolicy", clocks(1), **{**SMALL, "learning_starts": 5}).learn(7)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model, "_update", interrupt)
        model.learn(5, reset_num_timesteps=False)
    model.learn(1, reset_num_timesteps=False)
    assert np.array_equal(model.replay_buffer.observations[:9, 0], [[1, age] for age in range(9)])


def test_the_second_learn_starts_new_episodes():
    model = MBPO("MlpPolicy", clocks(1), n_steps=3, **SMALL).learn(7).learn(7)
    assert np.flatnonzero(model.replay_buffer.timeouts).tolist() == [6]
    model.learn(7, reset_num_timesteps=False)
    assert np.flatnonzero(model.replay_buffer.timeouts).tolist() == [6, 18]


class InterruptedInfo(dict):
    """An info that interrupts SB3's buffer, which reads the time limit from it after writing most arrays."""

    def get(self, *_):
        raise KeyboardInterrupt


def test_a_full_buffer_keeps_whole_rows():
    box = spaces.Box(-9, 9, (1,), np.float32)
    buffer = ReplayBuffer(3, box, box, "cpu")
    add = [np.full((1, 1), value, np.float32) for value in range(4)]
    for value in add[:3]:
        buffer.add(value, value, value, value[0], np.zeros(1), [{}])
    with pytest.raises(KeyboardInterrupt), whole_rows(buffer):
        buffer.add(add[3], add[3], add[3], add[3][0], np.zeros(1), [InterruptedInfo()])
    assert buffer.pos == 0
    assert np.array_equal(buffer.observations.ravel(), [0, 1, 2]) and np.array_equal(buffer.rewards.ravel(), [0, 1, 2])


def test_no_sequence_continues_from_an_old_transition_into_a_new_one(monkeypatch):
    box = spaces.Box(-99, 99, (1,), np.float32)
    buffer = SequenceReplayBuffer(4, box, box, "cpu", horizon=2)

    def add(step):
        obs, zeros = np.full((1, 1), step, np.float32), np.zeros(1)
        buffer.add(obs, obs + 1, zeros, zeros, zeros, [{}])

    for step in range(4):
        add(step)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SequenceReplayBuffer, "_continues", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        add(50)
    assert buffer.observations[0] == 50 and not buffer.starts[0]


def test_imagined_rows_that_were_never_written_are_not_sampled(monkeypatch):
    buffer = ModelReplayBuffer(4, 1, 1, "cpu")
    ones = th.ones(4, 1)
    buffer.add(Transitions(ones, ones, ones, ones[:, 0], th.ones(4, dtype=th.bool)))

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(th, "empty", interrupt)
        buffer.resize(8)
    buffer.add(Transitions(ones, ones, ones, ones[:, 0], th.ones(4, dtype=th.bool)))
    assert (buffer.contents().observations == 1).all() and len(buffer) == 4


def test_an_interrupted_round_of_the_agent_ends_its_imagined_trajectories(monkeypatch):
    kwargs = {"learning_starts": 1_000, "buffer_size": 100, "n_steps": 3}
    model = Dyna(SAC, env=make_vec_env("Pendulum-v1", seed=0), algorithm_kwargs=kwargs, max_episode_steps=50, **SMALL)
    buffer = model.agent.replay_buffer

    def interrupted_learn(*_, **__):
        buffer.pos = 2
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "_imagined", lambda *_, **__: model.agent.env)
    monkeypatch.setattr(model.agent, "set_env", lambda env: None)
    monkeypatch.setattr(model.agent, "learn", interrupted_learn)
    with pytest.raises(KeyboardInterrupt):
        model._learn_in_the_model(10)
    assert buffer.timeouts[1].all()


def test_buffers_without_time_limits_are_not_changed():
    box = spaces.Box(-9, 9, (1,), np.float32)
    buffer = ReplayBuffer(3, box, box, "cpu")
    end_trajectories(buffer)
    assert not buffer.dones.any()
    del buffer.timeouts
    buffer.pos = 1
    end_trajectories(buffer)
    assert not buffer.dones.any()
