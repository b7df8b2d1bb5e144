import json
import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.envs.registration import EnvSpec, register, registry
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_mbrl.common.types import Transitions
from sb3_mbrl.dynamics.learned_termination import LearnedTermination
from sb3_mbrl.tasks.termination import _described_entry_point, known_termination
from sb3_mbrl.tasks.termination_rules import (
    Bound,
    NeverTerminates,
    TerminatesAboveBar,
    TerminatesBelowTip,
    TerminatesInside,
    TerminatesOutside,
    termination_from_json,
    termination_to_json,
)

KEEP_POSITIONS = {"exclude_current_positions_from_observation": False}
NEVER_UNHEALTHY = {"terminate_when_unhealthy": False}
NO_ANT_EXTRAS = {"include_cfrc_ext_in_observation": False}
NO_HUMANOID_EXTRAS = {f"include_{part}_in_observation": False for part in ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")}

# (task, versions, constructor flags)
TERMINATING = [
    ("Hopper", (4, 5), {}),
    ("Hopper", (4, 5), KEEP_POSITIONS),
    ("Hopper", (4, 5), {"healthy_z_range": (1.0, 1.3), "healthy_angle_range": (-0.05, 0.1)}),
    # Within ±10, where the observation shows the velocities as they are
    ("Hopper", (4, 5), {"healthy_state_range": (-2.0, 3.0), **KEEP_POSITIONS}),
    ("Walker2d", (4, 5), {}),
    ("Walker2d", (4, 5), KEEP_POSITIONS),
    ("Walker2d", (4, 5), {"healthy_z_range": (1.0, 1.3), "healthy_angle_range": (-0.1, 0.2)}),
    ("Ant", (4, 5), {"healthy_z_range": (0.5, 0.8)}),
    ("Ant", (4, 5), {"healthy_z_range": (0.5, 0.8), **KEEP_POSITIONS}),
    ("Ant", (4,), {"healthy_z_range": (0.5, 0.8), "use_contact_forces": True}),
    ("Ant", (5,), {"healthy_z_range": (0.5, 0.8), **NO_ANT_EXTRAS}),
    ("Ant", (5,), {"healthy_z_range": (0.5, 0.8), **NO_ANT_EXTRAS, **KEEP_POSITIONS}),
    ("Humanoid", (4, 5), {}),
    ("Humanoid", (4, 5), KEEP_POSITIONS),
    ("Humanoid", (5,), {"healthy_z_range": (1.2, 1.5), **NO_HUMANOID_EXTRAS}),
    ("InvertedPendulum", (4, 5), {}),
    ("InvertedPendulum", (5,), {"reset_noise_scale": 0.1}),
    ("InvertedDoublePendulum", (4, 5), {}),
    ("InvertedDoublePendulum", (5,), {"healthy_reward": 1.0}),
]
NEVER = [
    *[(task, (4, 5), {}) for task in ("HalfCheetah", "Swimmer", "HumanoidStandup", "Reacher")],
    ("Pusher", (5,), {}),  # Pusher-v4 does not run on MuJoCo 3 and later
    ("HalfCheetah", (4, 5), KEEP_POSITIONS),
    *[(task, (4, 5), NEVER_UNHEALTHY) for task in ("Hopper", "Walker2d", "Ant", "Humanoid")],
]


def cases(table):
    return [
        pytest.param(f"{task}-v{version}", flags, id=f"{task}-v{version}-{'-'.join(flags) or 'default'}")
        for task, versions, flags in table
        for version in versions
    ]


def make(env_id, **flags):
    if "/" not in env_id and not env_id.startswith(("Pendulum", "MountainCar", "CartPole", "Acrobot")):
        pytest.importorskip("mujoco")
        pytest.importorskip("imageio")
    return gym.make(env_id, **flags)


def vec(env_id, n_envs=1, **flags):
    return DummyVecEnv([lambda: make(env_id, **flags)] * n_envs)


def collect(env, n_steps, policy=None):
    """Transitions of random actions, in float32 as models see them."""
    env.action_space.seed(0)
    rows = []
    obs, _ = env.reset(seed=0)
    for _ in range(n_steps):
        action = env.action_space.sample() if policy is None else policy(obs)
        next_obs, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, action, next_obs, reward, terminated))
        obs = env.reset()[0] if terminated or truncated else next_obs
    obs, actions, next_obs, rewards, terminated = (np.array(column) for column in zip(*rows, strict=True))
    floats = (th.as_tensor(array, dtype=th.float32) for array in (obs, actions, next_obs, rewards))
    return Transitions(*floats, th.as_tensor(terminated, dtype=th.bool))


# float32 rounding could flip a step that ends within 1e-7 of a bound; with these seeds none does
@pytest.mark.parametrize("env_id, flags", cases(TERMINATING))
def test_known_termination_equals_the_environment_on_every_step(env_id, flags):
    fn = known_termination(vec(env_id, **flags))
    transitions = collect(make(env_id, **flags), 300)
    predicted = fn(transitions.observations, transitions.actions, transitions.next_observations)
    assert transitions.terminated.sum() >= 2
    assert th.equal(predicted, transitions.terminated)


@pytest.mark.parametrize("env_id, flags", cases(NEVER))
def test_tasks_that_never_end(env_id, flags):
    assert known_termination(vec(env_id, **flags)) == NeverTerminates()
    assert not collect(make(env_id, **flags), 100).terminated.any()


def test_pendulum_never_ends():
    assert known_termination(vec("Pendulum-v1")) == NeverTerminates()


def push_along(velocity, left, right):
    """A policy that swings up, which random actions hardly ever do."""
    return lambda obs: right if obs[velocity] >= 0 else left


PUSH = np.array([1.0], dtype=np.float32)
# (task, what is changed about it, who acts)
CLASSIC = [
    ("CartPole-v1", {}, None),
    ("CartPole-v1", {"x_threshold": 0.1, "theta_threshold_radians": 0.3}, None),
    ("Acrobot-v1", {}, push_along(5, 0, 2)),
    ("Acrobot-v1", {"book_or_nips": "nips", "LINK_LENGTH_1": 0.5}, push_along(5, 0, 2)),
    ("MountainCar-v0", {}, push_along(1, 0, 2)),
    ("MountainCar-v0", {"goal_velocity": 0.02, "goal_position": 0.3}, push_along(1, 0, 2)),
    ("MountainCarContinuous-v0", {}, push_along(1, -PUSH, PUSH)),
    ("MountainCarContinuous-v0", {"goal_velocity": 0.02, "goal_position": 0.4}, push_along(1, -PUSH, PUSH)),
]


@pytest.mark.parametrize("env_id, changes, policy", CLASSIC, ids=lambda value: "" if callable(value) else str(value))
def test_classic_control_ends_as_the_environment_does(env_id, changes, policy):
    env = make(env_id)
    vars(env.unwrapped).update(changes)
    fn = known_termination(DummyVecEnv([lambda: env]))
    transitions = collect(env, 1_000, policy)
    predicted = fn(transitions.observations, transitions.actions, transitions.next_observations)
    assert transitions.terminated.sum() >= 2
    assert th.equal(predicted, transitions.terminated)


def test_the_constructor_of_mountain_car_is_respected():
    assert known_termination(vec("MountainCar-v0", goal_velocity=0.02)).bounds[1].low == 0.02


def test_hopper_hides_only_velocities_beyond_ten_from_the_state_range():
    env = make("Hopper-v5").unwrapped
    fn = known_termination(vec("Hopper-v5"))
    rng = np.random.default_rng(0)
    visible, hidden = 0, 0
    for _ in range(2000):
        qpos = np.array([0.0, rng.uniform(0.6, 1.5), rng.uniform(-0.3, 0.3), *rng.uniform(-120, 120, 3)])
        qvel = rng.uniform(-120, 120, 6) * (rng.random() < 0.3)
        env.set_state(qpos, qvel)
        obs = th.as_tensor(env._get_obs(), dtype=th.float32)[None]
        if bool(fn(obs, obs, obs)) != (not env.is_healthy):
            assert (np.abs(qvel) >= 100).any()
            hidden += 1
        else:
            visible += 1
    assert hidden > 0
    assert visible > 1000


@given(
    z=st.tuples(st.floats(0.5, 1.2), st.floats(1.2, 2.0)),
    angle=st.tuples(st.floats(-1.0, 0.0), st.floats(0.0, 1.0)),
    keep=st.booleans(),
)
@settings(max_examples=10, deadline=None)
def test_health_ranges_are_read_from_the_environment(z, angle, keep):
    flags = {"healthy_z_range": z, "healthy_angle_range": angle, "exclude_current_positions_from_observation": not keep}
    fn = known_termination(vec("Walker2d-v5", **flags))
    assert fn == TerminatesOutside((Bound(0 + keep, 1 + keep, *z), Bound(1 + keep, 2 + keep, *angle)))


def test_ends_of_a_range_follow_the_environment():
    pytest.importorskip("mujoco")
    healthy = th.zeros(1, 27)
    healthy[:, 0] = 1.0
    ant, humanoid = known_termination(vec("Ant-v5", **NO_ANT_EXTRAS)), known_termination(vec("Humanoid-v5"))
    assert not ant(healthy, healthy, healthy)
    assert humanoid(healthy, healthy, healthy)


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "fn",
    [
        NeverTerminates(),
        TerminatesOutside((Bound(0, 1, 0.7, math.inf), Bound(1, None, -100.0, 100.0))),
        TerminatesInside((Bound(0, 1, 0.45, math.inf, True),)),
        TerminatesBelowTip(),
        TerminatesAboveBar(height=1.5),
    ],
    ids=lambda fn: type(fn).__name__,
)
def test_observations_that_are_not_finite_count_as_terminated(fn, bad, dtype):
    upright = th.tensor([[1.0, 0.0, 0.0, 1.0, 1.0]], dtype=dtype).repeat(6, 1)
    if isinstance(fn, TerminatesInside):
        upright[:, 0] = 0.0
    next_obs = upright.clone()
    next_obs[range(5), range(5)] = bad
    terminated = fn(upright, upright[:, :1], next_obs)
    assert terminated.dtype == th.bool
    assert terminated.tolist() == [True] * 5 + [False]


def test_unknown_task_is_none():
    assert known_termination(DummyVecEnv([lambda: gym.make("FrozenLake-v1")])) is None


def test_vec_wrappers_are_looked_through():
    expected = known_termination(vec("InvertedPendulum-v5"))
    env = VecNormalize(VecMonitor(vec("InvertedPendulum-v5", n_envs=2)))
    assert expected is not None
    assert known_termination(env) == expected


def test_environment_built_by_hand_is_known():
    pytest.importorskip("imageio")
    from gymnasium.envs.mujoco.hopper_v5 import HopperEnv

    env = DummyVecEnv([lambda: HopperEnv(healthy_z_range=(0.9, 2.0))])
    assert env.get_attr("spec") == [None]
    assert known_termination(env) == known_termination(vec("Hopper-v5", healthy_z_range=(0.9, 2.0)))


@pytest.fixture
def register_temporarily():
    def register_one(env_id, entry_point):
        register(env_id, entry_point=entry_point, max_episode_steps=50)
        added.append(env_id)

    added: list[str] = []
    yield register_one
    for env_id in added:
        registry.pop(env_id)


def test_another_id_of_a_known_class_is_known(register_temporarily):
    register_temporarily("MyHopper-v0", registry["Hopper-v5"].entry_point)
    assert known_termination(vec("MyHopper-v0")) == known_termination(vec("Hopper-v5"))


def test_subclass_of_a_known_class_is_unknown(register_temporarily):
    pytest.importorskip("imageio")
    from gymnasium.envs.mujoco.hopper_v5 import HopperEnv

    class OtherRules(HopperEnv):
        @property
        def is_healthy(self):
            return True

    register_temporarily("OtherRules-v0", OtherRules)
    assert known_termination(vec("OtherRules-v0")) is None


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: gym.wrappers.TransformObservation(env, lambda obs: -obs, env.observation_space),
        lambda env: gym.wrappers.TimeAwareObservation(env),
        lambda env: gym.wrappers.NormalizeObservation(env),
        lambda env: gym.wrappers.FlattenObservation(gym.wrappers.FrameStackObservation(env, 2)),
        lambda env: gym.wrappers.FrameStackObservation(env, 2),
    ],
    ids=["transform", "time", "normalize", "flatten", "stack"],
)
def test_rewritten_observation_is_none(wrap):
    assert known_termination(DummyVecEnv([lambda: wrap(make("InvertedPendulum-v5"))])) is None


def test_stacked_vector_is_none():
    assert known_termination(VecFrameStack(vec("InvertedPendulum-v5"), 2)) is None


def test_reward_and_action_wrappers_do_not_matter():
    env = DummyVecEnv([lambda: gym.wrappers.TransformReward(make("InvertedPendulum-v5"), lambda reward: -reward)])
    assert known_termination(env) == known_termination(vec("InvertedPendulum-v5"))


def test_sub_environments_that_disagree_are_none():
    env = DummyVecEnv([lambda: make("Hopper-v5"), lambda: make("Hopper-v5", healthy_z_range=(0.8, 2.0))])
    assert known_termination(env) is None


def test_double_pendulum_of_other_geometry_is_none(tmp_path):
    env = make("InvertedDoublePendulum-v5").unwrapped
    other = tmp_path / "long.xml"
    with open(env.fullpath) as stock:
        other.write_text(stock.read().replace("0 0 0.6", "0 0 0.8"))
    assert known_termination(vec("InvertedDoublePendulum-v5", xml_file=str(other))) is None


def test_other_processes_answer_like_this_one():
    def known():
        env = make("Hopper-v5", healthy_z_range=(0.9, 2.0), **KEEP_POSITIONS)
        # Cannot be pickled, so the workers would die if asked for `env.spec`
        return gym.wrappers.TransformReward(env, lambda reward: 2 * reward)

    def rewritten():
        return gym.wrappers.TransformObservation(known(), lambda obs: -obs, None)

    known()  # skips where MuJoCo is missing
    env = VecNormalize(SubprocVecEnv([known, known]))
    try:
        assert known_termination(env) == known_termination(DummyVecEnv([known])) != None  # noqa: E711
        assert len(env.get_attr("_healthy_z_range")) == 2
    finally:
        env.close()
    env = SubprocVecEnv([rewritten])
    try:
        assert known_termination(env) is None
    finally:
        env.close()


ends = st.floats(allow_nan=False)
lows, highs = ends.filter(lambda end: end < math.inf), ends.filter(lambda end: end > -math.inf)
bounds = st.builds(Bound, st.integers(0, 9), st.none() | st.integers(10, 20), lows, highs, st.booleans())
terminations = st.one_of(
    st.just(NeverTerminates()),
    st.builds(TerminatesOutside, st.lists(bounds, max_size=4).map(tuple)),
    st.builds(TerminatesInside, st.lists(bounds, max_size=4).map(tuple)),
    st.builds(TerminatesBelowTip, st.floats(0.1, 1.0), st.floats(0.1, 1.0)),
    st.builds(TerminatesAboveBar, st.floats(0.1, 1.9)),
)


@given(terminations)
def test_json_round_trip(fn):
    text = json.dumps(termination_to_json(fn), allow_nan=False)
    assert termination_from_json(json.loads(text)) == fn


def test_user_function_is_not_stored():
    assert termination_to_json(lambda obs, action, next_obs: obs[:, 0] > 0) is None
    assert termination_to_json(LearnedTermination(2, 1)) is None


def test_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="Unknown termination kind 'sometimes'"):
        termination_from_json({"kind": "sometimes"})


@pytest.mark.parametrize(
    "data",
    [
        {"kind": ["never"]},
        {"kind": "never", "height": 1.0},
        {"kind": "above_bar"},
        {"kind": "above_bar", "height": "1"},
        {"kind": "outside", "bounds": 3},
        {"kind": "outside", "bounds": [{"start": 0}]},
        {"kind": "outside", "bounds": [{"start": 2, "stop": 2, "low": 0.0, "high": None, "inclusive": True}]},
        {"kind": "inside", "bounds": [{"start": -1, "stop": None, "low": 0.0, "high": None, "inclusive": True}]},
    ],
)
def test_a_description_of_anything_else_is_an_error(data):
    with pytest.raises(ValueError, match="Unknown termination kind|The description of the termination|A bound has"):
        termination_from_json(data)


def test_spec_with_a_class_as_entry_point_is_described(register_temporarily):
    register_temporarily("Handmade-v0", NeverTerminates)
    assert isinstance(registry["Handmade-v0"], EnvSpec)
    expected = "sb3_mbrl.tasks.termination_rules:NeverTerminates"
    assert _described_entry_point("<TimeLimit<NeverTerminates<Handmade-v0>>>") == expected
    assert _described_entry_point("<TimeLimit<HopperEnv<Handmade-v0>>>") is None
    assert _described_entry_point("<HopperEnv instance>") is None
    assert _described_entry_point("anything") is None
