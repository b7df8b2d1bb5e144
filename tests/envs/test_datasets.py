"""Offline learning: models of fixed datasets, without stepping an environment."""

import warnings
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, TimeLimit
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer, RolloutBuffer

from sb3_mbrl.common.trajectories import concatenate
from sb3_mbrl.dynamics import LearnedTermination
from sb3_mbrl.envs import LearnedModelEnv, LearnedModelVecEnv, collect, read_dataset
from sb3_mbrl.tasks.termination_rules import NeverTerminates, TerminatesOutside

COLUMNS = ("observations", "actions", "next_observations", "rewards", "terminated")


class Untouched(gym.Wrapper):
    """An environment whose attributes may be read, but which must not be reset or stepped."""

    def step(self, action):
        pytest.fail("stepped")

    def reset(self, **kwargs):
        pytest.fail("reset")


class Wide(gym.ActionWrapper):
    """:class:`Drift` with actions in [-1, 3]."""

    def __init__(self, env):
        super().__init__(env)
        self.action_space = spaces.Box(-1.0, 3.0, (1,), np.float32)

    def action(self, action):
        return (action - 1) / 2


def play(env, n_steps=60, seed=0):
    """
    :return: arrays by the names of Gymnasium
    """
    env.action_space.seed(seed)
    obs, _ = env.reset(seed=seed)
    rows = []
    for _ in range(n_steps):
        action = env.action_space.sample()
        next_obs, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, action, reward, next_obs, terminated, truncated))
        obs = env.reset()[0] if terminated or truncated else next_obs
    names = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations")
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def fill_buffer(env, arrays, size=1_000, **kwargs):
    """A replay buffer, filled as by SB3's off-policy algorithms."""
    kwargs = {"handle_timeout_termination": True, **kwargs}
    buffer = ReplayBuffer(size, env.observation_space, env.action_space, device="cpu", **kwargs)
    box = isinstance(env.action_space, spaces.Box)
    for obs, action, reward, next_obs, terminated, truncated in zip(*arrays.values(), strict=True):
        scaled = 2 * (action - env.action_space.low) / (env.action_space.high - env.action_space.low) - 1 if box else action
        infos = [{"TimeLimit.truncated": truncated and not terminated}]
        buffer.add(obs, next_obs, scaled, np.array([reward]), np.array([terminated or truncated]), infos)
    return buffer


@pytest.fixture
def real(drift):
    """Episodes that end by termination and by a time limit, with actions in [-1, 3]."""
    return TimeLimit(Wide(drift()), 12)


@pytest.fixture
def arrays(real):
    arrays = play(real)
    assert arrays["terminations"].any() and arrays["truncations"].any()
    return arrays


@pytest.fixture
def record(tmp_path, monkeypatch):
    """``record(arrays, env, spec)``: a dataset of Minari. ``DataCollector`` would need JAX."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    minari = pytest.importorskip("minari")

    def make(arrays, env, spec=None):
        ends = np.flatnonzero(arrays["terminations"] | arrays["truncations"]) + 1
        buffers = []
        for rows in np.split(np.arange(len(arrays["rewards"])), ends):
            if len(rows) > 0:
                observations = [*arrays["observations"][rows], arrays["next_observations"][rows[-1]]]
                columns = {name: list(arrays[name][rows]) for name in ("actions", "rewards", "terminations", "truncations")}
                buffers.append(minari.data_collector.EpisodeBuffer(observations=observations, **columns))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks for an author and more
            minari.create_dataset_from_buffers(
                "tests/random-v0",
                buffers,
                spec,
                observation_space=env.observation_space,
                action_space=env.action_space,
            )
        return minari.load_dataset("tests/random-v0")

    return make


@pytest.fixture
def tiny(tiny_fit):
    """Arguments of a small ``from_dataset``."""
    return {"n_envs": 3, **{name: value for name, value in tiny_fit.items() if name != "n_steps"}}


def assert_same_data(first, second):
    for name in COLUMNS:
        th.testing.assert_close(getattr(first[0], name), getattr(second[0], name))
    assert th.equal(first[1], second[1])


def changed(arrays, **changes):
    """Replaces columns; None removes one."""
    return {name: array for name, array in {**arrays, **changes}.items() if array is not None}


# -- Reading -----------------------------------------------------------------------------------------------------------


def test_arrays_become_transitions(real, arrays):
    transitions, initial = read_dataset(arrays, real)
    assert len(transitions) == 60
    np.testing.assert_array_equal(transitions.observations, arrays["observations"])
    np.testing.assert_array_equal(transitions.next_observations, arrays["next_observations"])
    np.testing.assert_allclose(transitions.actions, (arrays["actions"] - 1) / 2, atol=1e-6)
    np.testing.assert_allclose(transitions.rewards, arrays["rewards"], rtol=1e-6)
    # A time limit is no end of the task, but of the episode
    np.testing.assert_array_equal(transitions.terminated, arrays["terminations"])
    begins = np.flatnonzero(arrays["terminations"] | arrays["truncations"]) + 1
    np.testing.assert_array_equal(initial, arrays["observations"][[0, *begins[begins < 60]]])


def test_names_of_d4rl(real, arrays):
    renamed = {"terminations": "terminals", "truncations": "timeouts"}
    d4rl = {renamed.get(name, name): array.astype(np.float32) for name, array in arrays.items()}
    assert_same_data(read_dataset(d4rl, real), read_dataset(arrays, real))


def test_truncations_may_be_missing(real, arrays):
    _, initial = read_dataset(changed(arrays, truncations=None), real)
    assert len(initial) == 1 + arrays["terminations"][:-1].sum()


def test_a_replay_buffer_holds_the_same(real, arrays):
    buffer = fill_buffer(real, arrays)
    assert_same_data(read_dataset(buffer), read_dataset(arrays, real))


def test_the_oldest_row_of_a_full_buffer_begins_nothing(real, arrays):
    _, initial = read_dataset(fill_buffer(real, arrays, size=20))
    last = {name: array[-20:] for name, array in arrays.items()}
    np.testing.assert_array_equal(initial, read_dataset(last, real)[1][1:])


def test_the_result_of_collect_is_a_dataset(real, tiny):
    collected = collect(real, 30, seed=0)
    transitions, initial = read_dataset(collected, real)
    assert th.equal(transitions.observations, concatenate(collected).observations)
    assert th.equal(initial, th.stack([trajectory.observations[0] for trajectory in collected]))
    env = LearnedModelVecEnv.from_dataset(collected, real, max_episode_steps=5, **tiny)
    assert len(env.transitions) == 30
    with pytest.raises(ValueError, match="pass the environment"):
        read_dataset(collected)


def test_a_minari_dataset_holds_the_same(real, arrays, record):
    dataset = record(arrays, real)
    assert dataset.total_steps == 60
    assert_same_data(read_dataset(dataset), read_dataset(arrays, real))
    one = dataset.filter_episodes(lambda episode: episode.id == 1)
    np.testing.assert_array_equal(read_dataset(one)[1], read_dataset(arrays, real)[1][1:2])
    with pytest.raises(ValueError, match="no transitions"):
        read_dataset(dataset.filter_episodes(lambda episode: False))


def test_discrete_actions_become_one_hot():
    env = gym.make("CartPole-v1")
    arrays = play(env)
    transitions, _ = read_dataset(arrays, env)
    np.testing.assert_array_equal(transitions.actions.argmax(dim=1), arrays["actions"])
    assert transitions.actions.shape == (60, 2)
    assert_same_data(read_dataset(fill_buffer(env, arrays)), (transitions, read_dataset(arrays, env)[1]))


# -- from_dataset ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls, n_envs", [(LearnedModelEnv, {}), (LearnedModelVecEnv, {"n_envs": 3})])
def test_no_environment_is_stepped_or_reset(real, arrays, tiny, cls, n_envs):
    del tiny["n_envs"]
    env = cls.from_dataset(arrays, Untouched(real), start_states="initial", max_episode_steps=12, **tiny, **n_envs)
    assert isinstance(env.dynamics.termination_fn, LearnedTermination)
    assert env.imagination.rules.max_episode_steps == 12
    assert len(env.transitions) == 60
    first = env.reset()
    starts = [first[0]] if cls is LearnedModelEnv else first
    initial = {tuple(row) for row in read_dataset(arrays, real)[1].tolist()}
    assert {tuple(row) for row in np.array(starts).tolist()} <= initial


@pytest.mark.parametrize("env_id, rule", [("Pendulum-v1", NeverTerminates), ("CartPole-v1", TerminatesOutside)])
def test_an_environment_tells_its_rule_and_time_limit(env_id, rule, tiny):
    env = gym.make(env_id)
    dataset = play(env)
    by_id = LearnedModelVecEnv.from_dataset(dataset, env_id, uncertainty_penalty=0.5, **tiny)
    given = LearnedModelVecEnv.from_dataset(dataset, Untouched(env), **tiny)
    for imagined in (by_id, given):
        assert isinstance(imagined.dynamics.termination_fn, rule)
        assert imagined.imagination.rules.max_episode_steps == env.spec.max_episode_steps
    assert by_id.imagination.rules.uncertainty_penalty == 0.5


def test_the_seed_decides(real, arrays, tiny):
    def weights(**changes):
        env = LearnedModelVecEnv.from_dataset(arrays, real, max_episode_steps=5, **{**tiny, **changes})
        return env.dynamics.weights[0]

    assert th.equal(weights(), weights())
    assert not th.equal(weights(), weights(seed=1))


def test_from_a_minari_dataset(record, tiny):
    real = gym.make("Pendulum-v1", max_episode_steps=25)
    dataset = record(play(real), real, real.spec)
    venv = LearnedModelVecEnv.from_dataset(dataset, **tiny)
    assert isinstance(venv.dynamics.termination_fn, NeverTerminates)
    assert venv.imagination.rules.max_episode_steps == 25
    assert len(venv._origin.experience.initial) == 3
    del tiny["n_envs"]
    env = LearnedModelEnv.from_dataset(dataset, **tiny)
    assert env.env.spec.id == "Pendulum-v1" and env.env.spec.max_episode_steps == 25
    with pytest.raises(ValueError, match="observation_space of the dataset is"):
        LearnedModelEnv.from_dataset(dataset, "MountainCarContinuous-v0", **tiny)


@pytest.mark.parametrize("algorithm, env_id", [(SAC, "Pendulum-v1"), (DQN, "CartPole-v1")])
def test_the_replay_buffer_of_an_algorithm_is_a_dataset(algorithm, env_id, tiny):
    small = {"buffer_size": 100, "policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": "cpu"}
    behaviour = algorithm("MlpPolicy", env_id, learning_starts=50, **small).learn(60)
    venv = LearnedModelVecEnv.from_dataset(behaviour.replay_buffer, max_episode_steps=5, **tiny)
    assert isinstance(venv.dynamics.termination_fn, LearnedTermination)
    assert venv.action_space == behaviour.action_space and len(venv.transitions) == 60
    assert venv.transitions.actions.abs().max() <= 1
    # What is trained in there, the real environment understands
    learned = algorithm("MlpPolicy", venv, learning_starts=3, **small).learn(12)
    assert behaviour.action_space.contains(learned.predict(behaviour.observation_space.sample())[0])


def test_it_can_be_refitted(real, arrays, tiny):
    env = LearnedModelVecEnv.from_dataset(arrays, real, max_episode_steps=5, **tiny)
    env.refit(read_dataset(play(real, seed=1), real)[0], max_epochs=1)
    assert len(env.transitions) == 120


# -- What is refused ---------------------------------------------------------------------------------------------------


def wrong_arrays(arrays, **changes):
    return changed(arrays, **{name: change(arrays[name]) for name, change in changes.items()})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rewards": lambda a: None, "terminations": lambda a: None}, "lacks ['rewards', 'terminations']"),
        ({"next_observations": lambda a: None}, "d4rl.qlearning_dataset"),
        ({"actions": lambda a: a[:-1]}, "actions of the dataset must have shape (60, 1)"),
        ({"observations": lambda a: a[:-1]}, "one row for each observation"),
        ({"observations": lambda a: 3.0}, "must have shape (2,), one row for each observation, got ()"),
        ({"observations": lambda a: a[:, :1]}, "must have shape (60, 2)"),
        ({"rewards": lambda a: a[:, None]}, "rewards of the dataset must have shape (60,)"),
        ({"truncations": lambda a: a[1:]}, "truncations of the dataset must have shape (60,)"),
        ({"actions": lambda a: 2 * a}, "in the environment's scale"),
        ({"rewards": lambda a: np.where(np.arange(60) == 7, np.nan, a)}, "rewards to fit the dynamics model to contain NaN"),
        ({"actions": lambda a: np.full_like(a, np.nan)}, "actions to fit the dynamics model to contain NaN"),
    ],
)
def test_arrays_that_are_refused(real, arrays, tiny, changes, message):
    with pytest.raises(ValueError) as error:
        LearnedModelVecEnv.from_dataset(wrong_arrays(arrays, **changes), real, max_episode_steps=5, **tiny)
    assert message in str(error.value)


def test_an_empty_dataset_is_refused(real, arrays, tiny):
    empty = fill_buffer(real, arrays)
    empty.reset()
    for dataset in ({name: array[:0] for name, array in arrays.items()}, empty):
        with pytest.raises(ValueError, match="holds no transitions"):
            LearnedModelVecEnv.from_dataset(dataset, real, max_episode_steps=5, **tiny)


@pytest.mark.parametrize("action", [2, -1, 0.5])
def test_a_discrete_action_outside_of_the_space_is_refused(action, tiny):
    arrays = play(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="whole numbers from 0 to 1"):
        LearnedModelVecEnv.from_dataset({**arrays, "actions": np.full(60, action)}, "CartPole-v1", **tiny)


def test_a_buffer_that_is_refused(real, arrays, tiny):
    in_environment_scale = fill_buffer(real, arrays)
    in_environment_scale.actions *= 3
    with pytest.raises(ValueError, match="policy.scale_action"):
        LearnedModelVecEnv.from_dataset(in_environment_scale, max_episode_steps=5, **tiny)
    for setting in ({"handle_timeout_termination": False}, {"optimize_memory_usage": True}):
        buffer = fill_buffer(real, arrays, **{"handle_timeout_termination": False, **setting})
        with pytest.raises(ValueError, match="Fill a buffer with the default"):
            LearnedModelVecEnv.from_dataset(buffer, max_episode_steps=5, **tiny)
    with pytest.raises(ValueError, match="observation_space of the dataset is"):
        LearnedModelVecEnv.from_dataset(fill_buffer(real, arrays), "Pendulum-v1", **tiny)


def unknown_dataset(kind, space):
    if kind == "rollout":
        return RolloutBuffer(10, space, space)
    return {"id": "pendulum/random-v0", "list": [1, 2], "none": None}[kind]


@pytest.mark.parametrize("kind", ["id", "list", "none", "rollout"])
def test_anything_that_is_not_a_dataset_is_refused(kind, tiny):
    dataset = unknown_dataset(kind, spaces.Box(-1, 1, (2,)))
    with pytest.raises(ValueError, match="dataset must be a minari.MinariDataset"):
        LearnedModelVecEnv.from_dataset(dataset, "Pendulum-v1", **tiny)


def recorded(observation_space, env_spec=None):
    """A dataset like Minari's, but empty; it only has spaces."""
    action_space = spaces.Box(-1, 1, (1,))
    return SimpleNamespace(
        observation_space=observation_space, action_space=action_space, env_spec=env_spec, iterate_episodes=lambda: []
    )


@pytest.mark.parametrize(
    "dataset, message",
    [
        (recorded(spaces.Dict(a=spaces.Box(-1, 1, (2,)))), "flat Box"),
        (recorded(spaces.Box(0, 255, (8, 8, 3), np.uint8)), "images are not supported"),
        (DictReplayBuffer(5, spaces.Dict(a=spaces.Box(-1, 1, (2,))), spaces.Box(-1, 1, (1,))), "flat Box"),
    ],
)
def test_observations_that_are_not_vectors(dataset, message, tiny):
    with pytest.raises(ValueError, match=message):
        LearnedModelVecEnv.from_dataset(dataset, max_episode_steps=5, **tiny)


def test_arguments_are_required_that_only_an_environment_knows(real, arrays, tiny):
    with pytest.raises(ValueError, match="pass the environment, env="):
        LearnedModelVecEnv.from_dataset(arrays, max_episode_steps=5, **tiny)
    for dataset in (fill_buffer(real, arrays), recorded(real.observation_space)):
        with pytest.raises(ValueError, match="pass max_episode_steps="):
            LearnedModelVecEnv.from_dataset(dataset, **tiny)
    del tiny["n_envs"]
    with pytest.raises(ValueError, match="use LearnedModelVecEnv"):
        LearnedModelEnv.from_dataset(fill_buffer(real, arrays), max_episode_steps=5, **tiny)


def test_a_dataset_that_contradicts_the_known_rule(tiny):
    arrays = play(gym.make("Pendulum-v1"))
    arrays["terminations"] = np.arange(60) % 5 == 0
    with pytest.raises(ValueError, match="12 of 60 transitions terminated.* a wrapper ends"):
        LearnedModelVecEnv.from_dataset(arrays, "Pendulum-v1", **tiny)


def test_names_are_checked_before_anything_is_read(real, tiny):
    class Unread(dict):
        def __getitem__(self, key):
            pytest.fail("read")

    with pytest.raises(ValueError, match="propagation"):
        LearnedModelVecEnv.from_dataset(Unread(observations=1), real, max_episode_steps=5, propagation="ts2", **tiny)


def test_wrappers_are_respected(real, arrays):
    flat = FlattenObservation(gym.make("Pendulum-v1"))
    with pytest.raises(ValueError, match="with the same wrappers"):
        read_dataset(fill_buffer(real, arrays), flat)
