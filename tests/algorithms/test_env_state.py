"""A restored environment behaves exactly like the one that was saved."""

import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_mbrl.algorithms.env_state import restore_env_state, save_env_state


class Walk(gym.Env):
    """
    A random walk.

    :param attributes: additional attributes of the environment
    """

    def __init__(self, **attributes):
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32, seed=0)
        for name, value in attributes.items():
            setattr(self, name, value)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.normal(size=1)
        return self.position.copy(), {}

    def step(self, action):
        # Draws from its own stream and from that of its action space
        self.position += self.np_random.normal() + 0.1 * self.action_space.sample()
        return self.position.copy(), float(self.position[0]), bool(abs(self.position[0]) > 5), False, {}


def advance(env, n, seed=0):
    """Everything that ``n`` steps return."""
    rng = np.random.default_rng(seed)
    low, high = env.action_space.low, env.action_space.high
    outputs = []
    for _ in range(n):
        actions = rng.uniform(low, high, (env.num_envs, *low.shape)).astype(np.float32)
        obs, rewards, dones, infos = env.step(actions)
        outputs.append((obs.tobytes(), rewards.tobytes(), dones.tobytes(), [info["TimeLimit.truncated"] for info in infos]))
    return outputs


def through_disk(state):
    return pickle.loads(pickle.dumps(state))


def assert_goes_on(make, before=30, after=60):
    env, other = make(), make()
    env.seed(1)
    other.seed(2)
    env.reset()
    other.reset()
    advance(env, before)
    advance(other, 7, seed=1)
    assert restore_env_state(other, through_disk(save_env_state(env)))
    assert advance(other, after) == advance(env, after)
    return other


def walk(wrap=lambda env: env, n_envs=1, monitor=Monitor, **attributes):
    return lambda: wrap(DummyVecEnv([lambda: monitor(Walk(**attributes)) for _ in range(n_envs)]))


class TestGoesOn:
    @pytest.mark.parametrize("n_envs", [1, 3])
    def test_python(self, n_envs):
        assert_goes_on(walk(n_envs=n_envs))

    @pytest.mark.parametrize("env_id", ["Pendulum-v1", "MountainCarContinuous-v0"])
    def test_classic_control_over_a_time_limit(self, env_id):
        assert_goes_on(lambda: make_vec_env(env_id, 2), before=150, after=100)

    # Ant's reward looks back to a position that MuJoCo computed in the step before
    @pytest.mark.parametrize("env_id", ["InvertedPendulum-v5", "Ant-v5", "Hopper-v4"])
    def test_mujoco(self, env_id):
        pytest.importorskip("mujoco")
        assert_goes_on(lambda: make_vec_env(env_id, 2))

    def test_from_the_start_of_an_episode(self):
        assert_goes_on(walk(), before=0)

    @pytest.mark.parametrize("wrap", [VecNormalize, VecMonitor, lambda env: VecNormalize(VecFrameStack(VecMonitor(env), 3))])
    def test_wrappers(self, wrap):
        assert_goes_on(walk(wrap, n_envs=2, monitor=lambda env: env))

    def test_statistics_of_vec_normalize(self):
        other = assert_goes_on(walk(VecNormalize, n_envs=2))
        assert other.obs_rms.count > 2 * 90

    def test_randomised_mujoco_model(self):
        pytest.importorskip("mujoco")

        def make():
            return make_vec_env("Hopper-v5")

        env, other = make(), make()
        env.envs[0].unwrapped.model.body_mass[1:] *= 1.5
        env.envs[0].unwrapped.model.opt.gravity[2] = -5
        env.envs[0].unwrapped.model.opt.timestep = 0.001
        env.reset()
        other.reset()
        restore_env_state(other, through_disk(save_env_state(env)))
        assert advance(other, 20) == advance(env, 20)


class TestIdentity:
    def test_spaces_stay_shared(self):
        env = walk()()
        space = env.action_space
        restore_env_state(env, through_disk(save_env_state(env)))
        assert env.action_space is space is env.envs[0].action_space

    def test_shared_objects_stay_shared(self):
        numbers = [1, 2]
        env, other = walk(a=numbers, b=[numbers])(), walk()()
        restore_env_state(other, through_disk(save_env_state(env)))
        task = other.envs[0].unwrapped
        assert task.b[0] is task.a == [1, 2]

    def test_references_to_the_task_point_to_the_live_one(self):
        env, other = walk()(), walk()()
        for venv in (env, other):
            venv.envs[0].unwrapped.helper = {"task": venv.envs[0].unwrapped, "reset": venv.envs[0].reset}
        restore_env_state(other, through_disk(save_env_state(env)))
        task = other.envs[0].unwrapped
        assert task.helper["task"] is task
        assert task.helper["reset"].__self__ is other.envs[0]

    def test_mujoco_objects_and_renderer_are_kept(self):
        pytest.importorskip("mujoco")
        env = make_vec_env("InvertedPendulum-v5")
        task = env.envs[0].unwrapped
        model, data = task.model, task.data
        env.reset()
        restore_env_state(env, through_disk(save_env_state(env)))
        assert task.model is model and task.data is data
        assert task.mujoco_renderer.model is model and task.mujoco_renderer.data is data

    def test_the_specification_of_the_environment_is_kept(self):
        env, other = make_vec_env("Pendulum-v1"), make_vec_env("Pendulum-v1", env_kwargs={"render_mode": "rgb_array"})
        other.envs[0].unwrapped.render_mode = "human"
        restore_env_state(other, through_disk(save_env_state(env)))
        assert other.envs[0].unwrapped.render_mode == "human"


class TestWhatCannotBePickled:
    def test_open_files_functions_and_modules_are_not_changed(self, tmp_path):
        def make(name):
            task = Walk(log=open(tmp_path / name, "w"), rule=lambda x: x, module=np)
            return DummyVecEnv([lambda: Monitor(task, str(tmp_path / name))])

        env, other = make("a"), make("b")
        log, writer = other.envs[0].unwrapped.log, other.envs[0].results_writer
        env.reset()
        assert restore_env_state(other, through_disk(save_env_state(env)))
        assert other.envs[0].unwrapped.log is log and other.envs[0].results_writer is writer
        for venv in (env, other):
            venv.envs[0].unwrapped.log.close()
            venv.close()

    def test_an_environment_whose_state_cannot_be_read_is_reset(self):
        env = walk(noise=(i for i in range(10)))()
        state = save_env_state(env)
        assert state["envs"] is None
        assert not restore_env_state(env, state)

    def test_a_wrapper_may_hold_anything(self):
        env = walk()()
        env.envs[0].iterator = (i for i in range(10))
        assert save_env_state(env)["envs"] is not None


class TestOtherEnvs:
    def test_other_vec_env_wrappers(self):
        with pytest.raises(ValueError, match=r"saved as VecNormalize, but env is without wrappers\. Wrap it in the same"):
            restore_env_state(walk()(), save_env_state(walk(VecNormalize)()))

    def test_other_wrappers_of_the_task(self):
        env = DummyVecEnv([Walk])
        with pytest.raises(ValueError, match="DummyVecEnv > Monitor > Walk, but env is DummyVecEnv > Walk"):
            restore_env_state(env, save_env_state(walk()()))

    def test_other_mujoco_model(self):
        pytest.importorskip("mujoco")
        env, other = make_vec_env("Hopper-v5"), make_vec_env("Hopper-v5")
        state = through_disk(save_env_state(make_vec_env("Walker2d-v5")))
        state["envs"]["classes"] = save_env_state(env)["envs"]["classes"]
        with pytest.raises(ValueError, match="another MuJoCo model"):
            restore_env_state(other, state)

    def test_a_task_can_be_excluded(self):
        env, other = walk(VecNormalize)(), walk(VecNormalize)()
        env.reset()
        advance(env, 5)
        other.reset()
        position = other.envs[0].unwrapped.position.copy()
        assert not restore_env_state(other, through_disk(save_env_state(env)), tasks=False)
        assert other.envs[0].unwrapped.position == position
        assert other.obs_rms.mean == env.obs_rms.mean

    def test_wrappers_around_subproc_are_restored(self):
        env = VecNormalize(SubprocVecEnv([Walk, Walk]))
        try:
            env.reset()
            state = save_env_state(env)
        finally:
            env.close()
        assert state["envs"] is None
        other = walk(VecNormalize, n_envs=2)()
        assert not restore_env_state(other, through_disk(state))
        assert other.obs_rms.mean == env.obs_rms.mean
