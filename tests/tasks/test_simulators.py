"""Simulators of unknown environments, by copies or by setting states."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.wrappers import FrameStackObservation, RescaleAction, TransformReward
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_mbrl.tasks.mujoco_simulator import MujocoSimulator
from sb3_mbrl.tasks.simulator import SimulatorModel
from sb3_mbrl.tasks.simulators import CopySimulator, StateVectorSimulator


class Corridor(gym.Env):
    """Walks right until 1, and refuses steps after the end of an episode."""

    observation_space = gym.spaces.Box(-2, 2, (1,))
    action_space = gym.spaces.Box(-0.5, 0.5, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.hidden, self.over = 0.0, 0, False
        return self._observe(), {}

    def step(self, action):
        assert not self.over
        self.position += float(action[0])
        self.hidden += 1
        self.over = self.position >= 1
        # What the observation does not show matters
        return self._observe(), self.position + 10 * self.hidden, self.over, True, {}

    def _observe(self):
        return np.array([self.position], dtype=np.float32)


def get_state(env):
    return np.array([env.position, env.hidden, env.over])


def set_state(env, state):
    env.position, env.hidden, env.over = state


def corridor_model(envs, backend):
    return SimulatorModel(envs) if backend == "copies" else SimulatorModel(envs, get_state=get_state, set_state=set_state)


@pytest.mark.parametrize("backend", ["copies", "state vectors"])
@pytest.mark.parametrize("outer", [lambda env: env, lambda env: TransformReward(env, lambda reward: reward)])
def test_an_unknown_environment_starts_from_its_current_state(backend, outer, tmp_path):
    env = outer(Monitor(gym.wrappers.TimeLimit(Corridor(), 1), str(tmp_path / "monitor.csv")))
    env.reset()
    # The time limit ends the real episode; the model does not look at it
    obs, *_ = env.step(np.array([0.4], dtype=np.float32))
    model = corridor_model(env, backend)
    assert isinstance(model.simulator, CopySimulator if backend == "copies" else StateVectorSimulator)

    start = model.start(th.as_tensor(obs)[None])
    states = start.repeat(3, 1)
    np.testing.assert_allclose(model.observe(states), 0.4)
    first = model.step(states, th.tensor([[1.0], [0.0], [-1.0]]))
    np.testing.assert_allclose(model.observe(first.next_obs)[:, 0], [0.9, 0.4, -0.1], atol=1e-6)
    np.testing.assert_allclose(first.reward, [20.9, 20.4, 19.9], rtol=1e-6)
    assert first.terminated.tolist() == [False, False, False]
    second = model.step(first.next_obs, th.ones(3, 1))
    np.testing.assert_allclose(second.reward, [31.4, 30.9, 30.4], rtol=1e-6)
    assert second.terminated.tolist() == [True, False, False]
    # A state that ended stays where it is, and pays nothing
    third = model.step(second.next_obs, th.ones(3, 1))
    assert third.terminated.tolist() == [True, True, False]
    assert float(third.reward[0]) == 0
    np.testing.assert_allclose(model.observe(third.next_obs)[:, 0], [1.4, 1.4, 0.9], atol=1e-6)
    # States can be stepped again
    assert th.equal(model.step(first.next_obs, th.ones(3, 1)).reward, second.reward)
    assert (env.unwrapped.position, env.unwrapped.hidden) == (pytest.approx(0.4), 1)
    env.close()


@pytest.mark.parametrize("backend", ["copies", "state vectors"])
def test_a_state_for_each_environment_of_a_vector(backend):
    venv = VecNormalize(DummyVecEnv([Corridor, Corridor]))
    venv.reset()
    venv.unwrapped.envs[1].step(np.array([0.5]))
    model = corridor_model(venv, backend)

    outcome = model.step(model.start(th.tensor([[0.0], [0.5]])), th.zeros(2, 1))

    assert outcome.reward.tolist() == [10.0, 20.5]
    with pytest.raises(ValueError, match="observations of 1 environments, but SimulatorModel was given 2"):
        model.start(th.zeros(1, 1))


def test_wrappers_that_change_the_task_are_kept():
    env = TransformReward(gym.make("Pendulum-v1"), lambda reward: 100 * reward)
    obs, _ = env.reset(seed=0)
    model = SimulatorModel(env)
    assert isinstance(model.simulator, CopySimulator)

    outcome = model.step(model.start(th.as_tensor(obs)[None]), th.zeros(1, 1))

    assert float(outcome.reward) == pytest.approx(env.step(np.zeros(1, dtype=np.float32))[1])


def test_pusher_whose_object_moves_unseen_is_copied():
    env = gym.make("Pusher-v5")
    obs, _ = env.reset(seed=0)
    model = SimulatorModel(env)
    assert isinstance(model.simulator, CopySimulator)

    action = th.full((1, 7), 0.5)
    states = model.start(th.as_tensor(obs)[None])
    outcome = model.step(states, action)
    obs, reward, *_ = env.step(model.unscale_action(action)[0].numpy())

    np.testing.assert_allclose(model.observe(outcome.next_obs)[0], obs, rtol=1e-6, atol=1e-6)
    assert float(outcome.reward) == pytest.approx(reward, rel=1e-6)


def test_known_tasks_behind_monitor_and_vector_are_known():
    assert isinstance(SimulatorModel(make_vec_env("Hopper-v5", 2)).simulator, MujocoSimulator)


def test_a_subclass_is_not_known():
    class MyPendulum(type(gym.make("Pendulum-v1").unwrapped)):
        pass

    env = MyPendulum()
    env.reset(seed=0)
    assert isinstance(SimulatorModel(env).simulator, CopySimulator)


class Uncopyable(Corridor):
    def __deepcopy__(self, memo):
        raise TypeError("cannot pickle 'socket' object")


class Unbounded(Corridor):
    action_space = gym.spaces.Box(-np.inf, np.inf, (1,))


class Several(Corridor):
    action_space = gym.spaces.MultiDiscrete([2, 2])


@pytest.mark.parametrize(
    "make, arguments, message",
    [
        (Uncopyable, {}, "cannot be copied .TypeError: cannot pickle 'socket' object.*ProbabilisticEnsemble"),
        (Unbounded, {}, "bounds must be finite.*TransformAction"),
        (Several, {}, "needs Box or Discrete actions"),
        (lambda: FrameStackObservation(Corridor(), 2), {}, "needs a flat Box.*FlattenObservation"),
        (lambda: "Pusher-v5", {}, "'Pusher-v5' is not a task .* pass the environment"),
        (lambda: VecFrameStack(DummyVecEnv([Corridor]), 2), {}, "VecFrameStack changes the shape.*env.unwrapped"),
        (Corridor, {"get_state": get_state}, "`get_state` and `set_state` belong together"),
        (Corridor, {"get_state": lambda env: 1.0, "set_state": set_state}, "got float with 0 dimensions"),
    ],
)
def test_environments_that_cannot_be_simulated_are_rejected(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        SimulatorModel(make(), **arguments)


def test_other_processes_are_rejected():
    venv = SubprocVecEnv([lambda: gym.make("Pendulum-v1")], start_method="fork")
    try:
        with pytest.raises(ValueError, match="other processes.*DummyVecEnv"):
            SimulatorModel(venv)
    finally:
        venv.close()


def test_rescaled_actions_are_respected():
    env = RescaleAction(gym.make("Pendulum-v1"), np.float32(-4), np.float32(4))
    obs, _ = env.reset(seed=0)
    model = SimulatorModel(env)
    twin = copy.deepcopy(env)

    outcome = model.step(model.start(th.as_tensor(obs)[None]), th.full((1, 1), 0.5))

    assert float(outcome.reward) == pytest.approx(twin.step(np.array([2.0], dtype=np.float32))[1])
