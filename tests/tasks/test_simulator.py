import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch as th

from sb3_mbrl.tasks.simulator import SimulatorModel

KEEP_POSITIONS = {"exclude_current_positions_from_observation": False}
NEVER_UNHEALTHY = {"terminate_when_unhealthy": False}

# (task, versions, constructor flags)
MUJOCO = [
    ("HalfCheetah", (4, 5), {}),
    ("HalfCheetah", (4, 5), {"forward_reward_weight": 2.0, "ctrl_cost_weight": 0.3, **KEEP_POSITIONS}),
    ("HalfCheetah", (5,), {"frame_skip": 2}),
    ("Swimmer", (4, 5), {}),
    ("Swimmer", (4, 5), KEEP_POSITIONS),
    ("Hopper", (4, 5), {}),
    ("Hopper", (4, 5), {"healthy_reward": 3.0, "healthy_angle_range": (-0.05, 0.05), **NEVER_UNHEALTHY}),
    ("Hopper", (5,), {"healthy_state_range": (-1.0, 2.0), **KEEP_POSITIONS}),
    ("Walker2d", (4, 5), {}),
    ("Walker2d", (4, 5), {"healthy_z_range": (1.1, 1.3), **NEVER_UNHEALTHY}),
    ("Ant", (4, 5), {"healthy_z_range": (0.5, 0.8)}),
    ("Ant", (4,), {"use_contact_forces": True, **KEEP_POSITIONS}),
    ("Ant", (5,), {"include_cfrc_ext_in_observation": False, "main_body": 3, **NEVER_UNHEALTHY}),
    ("Humanoid", (4, 5), {}),
    ("Humanoid", (5,), {"include_cinert_in_observation": False, "include_qfrc_actuator_in_observation": False}),
    ("InvertedPendulum", (4, 5), {}),
    ("InvertedDoublePendulum", (4, 5), {}),
    ("InvertedDoublePendulum", (5,), {"healthy_reward": 3.0}),
    ("Reacher", (4, 5), {}),
    ("Reacher", (5,), {"reward_dist_weight": 3.0, "reward_control_weight": 0.2}),
]
MUJOCO_IDS = [(f"{task}-v{version}", flags) for task, versions, flags in MUJOCO for version in versions]

# The constraint solver starts cold here and warm in the environment. It always stops in tolerance; how far apart two such
# ends are depends on the task
COLD_START = {"Ant": 1e-7, "Humanoid": 1e-5}
COLD_START_FORCES = {"Ant": 1e-6, "Humanoid": 5e-3}

# Lower and upper ends of states to step from
CLASSIC_STATES = {
    "Pendulum-v1": ([-7, -8], [7, 8]),
    "CartPole-v1": ([-3, -3, -0.3, -3], [3, 3, 0.3, 3]),
    "MountainCar-v0": ([-1.2, -0.07], [0.6, 0.07]),
    "MountainCarContinuous-v0": ([-1.2, -0.07], [0.6, 0.07]),
    "Acrobot-v1": ([-3, -3, -12, -28], [3, 3, 12, 28]),
}
CLASSIC = list(CLASSIC_STATES)
# Computed in float32 there
CLASSIC_TOLERANCE = {"MountainCarContinuous-v0": 1e-6}


def state_of(model, env):
    """The full state of the environment, even if its observation does not show it."""
    task = model.simulator.task
    physics = np.empty(task.n_physics)
    mujoco.mj_getState(env.model, env.data, physics, int(mujoco.mjtState.mjSTATE_FULLPHYSICS))
    return np.concatenate([physics, task.extras(env.data)])[None]


def visited_states(model, env, n):
    """States along a random trajectory, (n, S)."""
    env.reset(seed=0)
    env.action_space.seed(0)
    states = []
    for _ in range(n):
        states.append(state_of(model, env))
        env.step(env.action_space.sample())
    return th.as_tensor(np.concatenate(states))


@pytest.mark.parametrize("env_id, flags", MUJOCO_IDS)
def test_a_mujoco_step_is_that_of_the_environment(env_id, flags):
    env = gym.make(env_id, **flags).unwrapped
    model = SimulatorModel(env, n_threads=1)
    env.action_space.seed(0)
    env.reset(seed=0)
    name = env_id.split("-")[0]
    tolerance = COLD_START.get(name, 1e-9)
    n_visible = model.simulator.task.n_visible
    ends = 0
    for _ in range(120):
        action = env.action_space.sample().astype(np.float64)
        next_states, reward, terminated = model.simulator.step(state_of(model, env), action[None])
        obs, expected_reward, expected_terminated, _, _ = env.step(action)
        observed = model.simulator.observe(next_states)[0]
        np.testing.assert_allclose(observed[:n_visible], obs[:n_visible], atol=tolerance)
        np.testing.assert_allclose(observed, obs, atol=COLD_START_FORCES.get(name, 1e-9))
        assert reward[0] == pytest.approx(expected_reward, abs=tolerance)
        assert terminated[0] == expected_terminated
        if expected_terminated:
            ends += 1
            env.reset()
    endless = (
        name in ("HalfCheetah", "Swimmer", "Reacher") or "terminate_when_unhealthy" in flags or "use_contact_forces" in flags
    )
    assert ends > 0 or endless


@pytest.mark.parametrize("env_id, flags", MUJOCO_IDS)
def test_start_inverts_the_observation(env_id, flags):
    env = gym.make(env_id, **flags).unwrapped
    model = SimulatorModel(env, n_threads=1)
    obs, _ = env.reset(seed=0)
    for _ in range(5):
        obs = env.step(env.action_space.sample())[0]

    states = model.start(th.as_tensor(obs, dtype=th.float32)[None])

    assert states.dtype == th.float64
    assert model.observe(states).dtype == th.float32
    np.testing.assert_allclose(model.observe(states)[0], obs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Hopper-v5", "Swimmer-v5", "InvertedDoublePendulum-v5", "Reacher-v5"])
def test_a_trajectory_from_an_observation_is_that_of_the_environment(env_id):
    env = gym.make(env_id).unwrapped
    env.action_space.seed(0)
    obs, _ = env.reset(seed=0)
    model = SimulatorModel(env_id)
    states = model.start(th.as_tensor(obs)[None])
    for _ in range(10):
        action = th.rand(1, model.action_dim) * 2 - 1
        states, reward, _, *_ = model.step(states, action)
        obs, expected, terminated, _, _ = env.step(model.unscale_action(action)[0].numpy().astype(np.float64))
        np.testing.assert_allclose(model.observe(states)[0], obs, rtol=1e-5, atol=1e-5)
        assert reward.dtype == th.float32
        assert float(reward) == pytest.approx(expected, rel=1e-5, abs=1e-5)
        if terminated:
            break


@pytest.mark.parametrize("env_id", ["Ant-v5", "Humanoid-v5"])
def test_the_first_reward_from_an_observation_is_close(env_id):
    env = gym.make(env_id).unwrapped
    obs, _ = env.reset(seed=0)
    model = SimulatorModel(env)
    for _ in range(5):
        action = th.rand(1, model.action_dim) * 2 - 1
        outcome = model.step(model.start(th.as_tensor(obs)[None]), action)
        obs, reward, *_ = env.step(model.unscale_action(action)[0].numpy())
        assert float(outcome.reward) == pytest.approx(reward, abs=0.05)


@pytest.mark.parametrize("env_id", CLASSIC)
def test_a_classic_step_is_that_of_the_environment(env_id):
    env = gym.make(env_id).unwrapped
    model = SimulatorModel(env)
    env.action_space.seed(0)
    tolerance = CLASSIC_TOLERANCE.get(env_id, 1e-9)
    ends = 0
    for episode in range(30):
        env.reset(seed=episode)
        # From all over the space, not only where episodes start
        env.state = np.random.default_rng(episode).uniform(*CLASSIC_STATES[env_id])
        for _ in range(20):
            action = env.action_space.sample()
            states = np.array(env.state, dtype=np.float64)[None]
            next_states, reward, terminated = model.simulator.step(states, np.asarray(action)[None])
            obs, expected_reward, expected_terminated, _, _ = env.step(action)
            np.testing.assert_allclose(next_states[0], env.state, atol=tolerance)
            np.testing.assert_allclose(model.observe(th.as_tensor(next_states))[0], obs, atol=1e-6)
            assert reward[0] == pytest.approx(expected_reward, abs=tolerance)
            assert terminated[0] == expected_terminated
            ends += expected_terminated
            if expected_terminated:
                break
    assert ends > 0 or env_id == "Pendulum-v1"


@pytest.mark.parametrize("env_id", CLASSIC)
def test_classic_states_start_from_observations(env_id):
    env = gym.make(env_id)
    obs = th.as_tensor(np.stack([env.reset(seed=seed)[0] for seed in range(4)]))
    model = SimulatorModel(env)

    np.testing.assert_allclose(model.observe(model.start(obs)), obs, atol=1e-6)


def test_attributes_of_the_task_are_respected_and_kept():
    env = gym.make("Pendulum-v1", g=3.0).unwrapped
    obs, _ = env.reset(seed=0)
    model = SimulatorModel(env)
    states, action = model.start(th.as_tensor(obs)[None]), th.ones(1, 1)
    before = model.step(states, action)
    env.g = 9.0

    assert th.equal(model.step(states, action).next_obs, before.next_obs)
    np.testing.assert_allclose(SimulatorModel("Pendulum-v1").step(states, action).reward, before.reward)
    assert not th.equal(SimulatorModel("Pendulum-v1").step(states, action).next_obs, before.next_obs)


def test_physics_of_the_environment_are_kept_and_do_not_leak():
    env = gym.make("Hopper-v5").unwrapped
    env.model.body_mass[1] *= 2
    model = SimulatorModel(env)
    assert model.simulator.task.model.body_mass[1] == env.model.body_mass[1]

    model.simulator.task.model.body_mass[1] = 1.0
    assert env.model.body_mass[1] != 1.0


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Ant-v5"])
def test_a_batch_over_threads_equals_a_loop(env_id):
    env = gym.make(env_id).unwrapped
    model, alone = SimulatorModel(env, n_threads=3), SimulatorModel(env, n_threads=1)
    states = visited_states(model, env, 8)
    actions = th.rand(8, model.action_dim) * 2 - 1

    batch = model.step(states, actions)

    for index in reversed(range(8)):
        single = alone.step(states[index : index + 1], actions[index : index + 1])
        assert th.equal(batch.next_obs[index], single.next_obs[0])
        assert th.equal(batch.reward[index], single.reward[0])


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Ant-v5", "CartPole-v1"])
def test_the_live_environment_is_not_changed(env_id):
    env, twin = gym.make(env_id), gym.make(env_id)
    obs, _ = env.reset(seed=0)
    twin.reset(seed=0)
    model = SimulatorModel(env)
    states = model.start(th.as_tensor(obs)[None])
    for _ in range(3):
        states = model.step(states, th.eye(model.action_dim)[:1]).next_obs
    action = env.action_space.sample()

    np.testing.assert_array_equal(env.step(action)[0], twin.step(action)[0])


def test_discrete_actions_are_one_hot():
    env = gym.make("CartPole-v1")
    obs, _ = env.reset(seed=0)
    model = SimulatorModel(env)
    assert model.action_dim == 2

    outcome = model.step(model.start(th.as_tensor(obs)[None].repeat(2, 1)), th.eye(2))

    for action in range(2):
        env.reset(seed=0)
        np.testing.assert_allclose(model.observe(outcome.next_obs)[action], env.step(action)[0], atol=1e-6)


def test_discrete_actions_stay_one_hot_for_functions_of_the_user():
    model = SimulatorModel("CartPole-v1", reward_fn=lambda obs, action, next_obs: action @ th.tensor([1.0, 2.0]))

    assert model.step(th.zeros(2, 4).double(), th.eye(2)).reward.tolist() == [1.0, 2.0]


def test_the_simulator_has_the_attributes_of_every_model():
    model = SimulatorModel("Pendulum-v1")
    outcome = model.step(th.zeros(3, 2).double(), th.zeros(3, 1), members="expectation", deterministic=True, uncertainty=True)

    assert model.device == th.device("cpu")
    assert model.elites.tolist() == [0]
    assert model.env_spec.id == "Pendulum-v1"
    assert outcome.epistemic_std.tolist() == outcome.aleatoric_std.tolist() == [[0.0] * 4] * 3
    assert outcome.terminated.dtype == th.bool
    assert model.step(th.zeros(3, 2).double(), th.zeros(3, 1)).epistemic_std is None


def test_reward_and_termination_of_the_user_see_what_the_environment_shows():
    seen = []

    def reward_fn(obs, action, next_obs):
        seen.extend([obs, action, next_obs])
        return action[:, 0] + next_obs[:, 2]

    model = SimulatorModel("Pendulum-v1", reward_fn=reward_fn, termination_fn=lambda obs, action, next_obs: obs[:, 0] > 0)
    states = model.start(th.tensor([[1.0, 0.0, 0.5], [-1.0, 0.0, 0.5]]))
    seen.clear()  # forget the rows on which the function was tried

    outcome = model.step(states, th.tensor([[1.0], [0.5]]))

    assert [part.shape for part in seen] == [(2, 3), (2, 1), (2, 3)]
    assert all(part.dtype == th.float32 for part in seen)
    assert seen[1].tolist() == [[2.0], [1.0]]
    assert outcome.terminated.tolist() == [True, False]
    np.testing.assert_allclose(outcome.reward, seen[1][:, 0] + model.observe(outcome.next_obs)[:, 2])


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Ant-v5"])
def test_a_diverged_state_is_nan_and_stays_so(env_id, tmp_path, monkeypatch):
    # MuJoCo writes its warnings to a file where it runs
    monkeypatch.chdir(tmp_path)
    env = gym.make(env_id).unwrapped
    model = SimulatorModel(env, n_threads=2)
    states = visited_states(model, env, 3)
    states[1, 1 + env.model.nq :] = 1e9
    action = th.zeros(3, model.action_dim)

    for _ in range(2):
        outcome = model.step(states, action)
        states = outcome.next_obs
        assert outcome.reward.isnan().tolist() == [False, True, False]
        assert states.isnan().all(dim=1).tolist() == [False, True, False]
        assert outcome.terminated.tolist() == [False, True, False]
    assert model.observe(states)[1].isnan().all()


def test_an_action_that_is_not_finite_diverges():
    model = SimulatorModel("Pendulum-v1", reward_fn=lambda obs, action, next_obs: th.ones(len(obs)))

    outcome = model.step(th.zeros(2, 2).double(), th.tensor([[th.nan], [0.0]]))

    assert outcome.reward.isnan().tolist() == [True, False]
    assert outcome.terminated.tolist() == [True, False]
