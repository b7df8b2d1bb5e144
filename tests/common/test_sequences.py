"""Every sampled sequence is a real piece of an episode, and all such pieces are sampled."""

import io
import itertools
import pickle
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_mbrl.algorithms.replay_files import _ReplayBufferPickler
from sb3_mbrl.common.sequences import DictSequenceReplayBuffer, SequenceReplayBuffer

BOX = spaces.Box(-np.inf, np.inf, (2,), np.float32)
DICT = spaces.Dict({"position": BOX, "camera": spaces.Box(0, 255, (1, 2, 2), np.uint8)})
ACTION_SPACE = spaces.Box(-1.0, 1.0, (2,), np.float32)

ON, END, LIMIT, BREAK = "goes on", "task ends", "time limit", "reset without a done"


@dataclass
class Step:
    """The record of a transition. Observations are numbered, and no number occurs twice."""

    number: int
    obs: int
    next_obs: int
    ending: str


class Recorder:
    """Stores numbered transitions in a buffer and records them all; finds the sequences by brute force."""

    def __init__(self, buffer):
        self.buffer = buffer
        self.history = [[] for _ in range(buffer.n_envs)]
        self.count = itertools.count(1)

    def add(self, *endings):
        steps = []
        for past, ending in zip(self.history, endings, strict=True):
            goes_on = past and past[-1].ending == ON
            obs = past[-1].next_obs if goes_on else next(self.count)
            steps.append(Step(len(past) * len(endings) + len(steps), obs, next(self.count), ending))
        for past, step in zip(self.history, steps, strict=True):
            past.append(step)
        self.buffer.add(
            observations(self.buffer, [step.obs for step in steps]),
            observations(self.buffer, [step.next_obs for step in steps]),
            np.array([[step.number, -step.number] for step in steps], dtype=np.float32),
            np.array([step.number for step in steps], dtype=np.float32),
            np.array([step.ending in (END, LIMIT) for step in steps]),
            [{"TimeLimit.truncated": step.ending == LIMIT} for step in steps],
        )

    def sequences(self):
        """The steps of each sequence, by (row, environment); those at the end of an episode have fewer than ``horizon``."""
        horizon, capacity = self.buffer.horizon, self.buffer.buffer_size
        found = {}
        for env, past in enumerate(self.history):
            for start in range(max(0, len(past) - capacity), len(past)):
                steps = past[start : start + horizon]
                end = next((i for i, step in enumerate(steps) if step.ending != ON), len(steps) - 1)
                if steps[end].ending in (END, LIMIT) or end == horizon - 1:
                    found[start % capacity, env] = steps[: end + 1]
        return found

    def check_starts(self):
        sequences = self.sequences()
        assert {tuple(start) for start in np.argwhere(self.buffer.starts).tolist()} == set(sequences)
        assert self.buffer.n_sequences == len(sequences)
        assert ((self.buffer.scaled_priorities > 0) == self.buffer.starts).all()

    def check_sample(self, samples):
        sequences = self.sequences()
        for b, start in enumerate(samples.indices.tolist()):
            steps = sequences[divmod(start, self.buffer.n_envs)]
            missing = self.buffer.horizon - len(steps)
            assert samples.valid[:, b].tolist() == [1] * len(steps) + [0] * missing
            steps = steps + [steps[-1]] * missing
            numbers = th.tensor([[float(step.number)] for step in steps])
            th.testing.assert_close(samples.rewards[:, b], numbers)
            th.testing.assert_close(samples.actions[:, b], th.cat([numbers, -numbers], dim=1))
            ended = [[float(step.ending == END)] for step in steps]
            assert samples.terminated[:, b].tolist() == ended
            expected = observations(self.buffer, [steps[0].obs, *(step.next_obs for step in steps)])
            for ours, theirs in zip(leaves(samples.observations), leaves(expected), strict=True):
                assert np.array_equal(ours[:, b].numpy(), theirs)


def observations(buffer, numbers):
    """Turns a number into an observation of the buffer's space."""
    numbers = np.array(numbers)
    flat = (numbers[:, np.newaxis] + [0, 0.5]).astype(np.float32)
    if not isinstance(buffer.observation_space, spaces.Dict):
        return flat
    return {"position": flat, "camera": np.repeat(numbers, 4).reshape(-1, 1, 2, 2).astype(np.uint8)}


def leaves(obs):
    return [obs[key] for key in sorted(obs)] if isinstance(obs, dict) else [obs]


def make_buffer(rows=10, n_envs=1, horizon=3, obs_space=BOX, **kwargs):
    kind = DictSequenceReplayBuffer if isinstance(obs_space, spaces.Dict) else SequenceReplayBuffer
    return kind(rows * n_envs, obs_space, ACTION_SPACE, device="cpu", n_envs=n_envs, horizon=horizon, **kwargs)


def recorded(*steps, **kwargs):
    """A buffer of one environment and its record."""
    recorder = Recorder(make_buffer(**kwargs))
    for ending in steps:
        recorder.add(ending)
    return recorder


def with_compact_pickle(buffer):
    """Pickles and restores the buffer, as a checkpoint does."""
    file = io.BytesIO()
    _ReplayBufferPickler(file, buffer).dump(buffer)
    return pickle.loads(file.getvalue())


# ---------------------------------------------------------------- which sequences there are


@st.composite
def runs(draw):
    """Numbers of rows, environments and transitions per sequence, the ends over time, and when the buffer is pickled."""
    horizon = draw(st.integers(1, 5))
    rows, n_envs = draw(st.integers(horizon, 12)), draw(st.integers(1, 3))
    ending = st.sampled_from([ON] * draw(st.integers(1, 12)) + [END, LIMIT, BREAK])
    steps = draw(st.lists(st.tuples(*[ending] * n_envs), max_size=40))
    return rows, n_envs, horizon, steps, draw(st.integers(0, 40))


@pytest.mark.parametrize("obs_space", [BOX, DICT], ids=["box", "dict"])
@pytest.mark.parametrize("alpha", [0.0, 0.6])
@given(run=runs())
def test_sequences_equal_those_found_by_brute_force(obs_space, alpha, run):
    rows, n_envs, horizon, steps, pickled_at = run
    recorder = Recorder(make_buffer(rows, n_envs, horizon, obs_space, priority_exponent=alpha))
    np.random.seed(0)
    for number, endings in enumerate(steps):
        if number == pickled_at:
            recorder.buffer = with_compact_pickle(recorder.buffer)
        recorder.add(*endings)
        recorder.check_starts()
    if recorder.sequences():
        samples = recorder.buffer.sample(50)
        recorder.check_sample(samples)
        assert samples.rewards.shape == samples.terminated.shape == (horizon, 50, 1)
        assert samples.valid.shape == (horizon, 50)


def test_the_contents_of_a_sample():
    samples = recorded(ON, ON, ON, ON).buffer.sample(7)
    assert samples.observations.shape == (4, 7, 2)
    assert samples.actions.shape == (3, 7, 2)
    assert samples.rewards.shape == samples.terminated.shape == (3, 7, 1)
    assert samples.valid.shape == (3, 7)
    assert samples.indices.shape == samples.weights.shape == (7,)
    tensors = [value for name, value in samples._asdict().items() if name != "indices"]
    assert {tensor.dtype for tensor in tensors} == {th.float32}
    assert samples.indices.dtype == np.int64
    assert samples.weights.unique().tolist() == [1.0]


def test_the_last_observation_is_the_terminal_one():
    recorder = recorded(ON, ON, END, ON)
    terminal, first_of_next = recorder.history[0][2].next_obs, recorder.history[0][3].obs
    assert terminal != first_of_next
    samples = recorder.buffer.sample(20)
    assert samples.observations[-1, :, 0].unique().tolist() == [terminal]
    assert samples.terminated[-1].unique().tolist() == [1]


def test_the_end_of_an_episode_comes_at_every_place_of_a_sequence():
    recorder = recorded(ON, ON, ON, END, ON)
    assert list(recorder.sequences()) == [(0, 0), (1, 0), (2, 0), (3, 0)]
    recorder.check_starts()
    samples = recorder.buffer.sample(50)
    recorder.check_sample(samples)
    ends = {start: samples.terminated[:, samples.indices == start, 0].mean(dim=1).tolist() for start in range(4)}
    assert ends == {0: [0, 0, 0], 1: [0, 0, 1], 2: [0, 1, 1], 3: [1, 1, 1]}
    valid = {start: samples.valid[:, samples.indices == start].mean(dim=1).tolist() for start in range(4)}
    assert valid == {0: [1, 1, 1], 1: [1, 1, 1], 2: [1, 1, 0], 3: [1, 0, 0]}


def test_a_time_limit_ends_a_sequence_but_not_the_task():
    recorder = recorded(ON, ON, LIMIT, ON, ON)
    assert list(recorder.sequences()) == [(0, 0), (1, 0), (2, 0)]
    recorder.check_starts()
    samples = recorder.buffer.sample(20)
    recorder.check_sample(samples)
    assert samples.terminated.sum() == 0


def test_without_timeout_handling_a_time_limit_counts_as_an_end():
    recorder = recorded(ON, ON, LIMIT, ON, ON, handle_timeout_termination=False)
    recorder.check_starts()
    samples = recorder.buffer.sample(20)
    assert samples.terminated[-1].unique().tolist() == [1]


@pytest.mark.parametrize("changed", ["position", "camera"])
def test_a_difference_in_one_number_of_one_key_is_a_break(changed):
    buffer = make_buffer(horizon=2, obs_space=DICT)
    for number, jump in enumerate([0, 0, 50, 0]):
        obs, next_obs = observations(buffer, [number]), observations(buffer, [number + 1])
        obs[changed][..., -1] += jump
        buffer.add(obs, next_obs, np.zeros((1, 2)), np.zeros(1), np.zeros(1), [{}])
    assert np.flatnonzero(buffer.starts).tolist() == [0, 2]


@pytest.mark.parametrize(("done", "time_limit"), [(True, False), (True, True), (False, True)])
def test_an_episode_ends_even_if_the_next_one_begins_where_it_ended(done, time_limit):
    buffer = make_buffer(horizon=2)
    obs = np.ones((1, 2))
    for step in range(5):
        ends = step == 2
        infos = [{"TimeLimit.truncated": ends and time_limit}]
        buffer.add(obs, obs, np.zeros((1, 2)), np.zeros(1), np.array([ends and done]), infos)
    assert np.flatnonzero(buffer.starts).tolist() == [0, 1, 2, 3]


def test_a_break_of_one_environment_leaves_the_others():
    recorder = Recorder(make_buffer(n_envs=2, horizon=2))
    for endings in [(ON, ON), (BREAK, ON), (ON, ON)]:
        recorder.add(*endings)
    recorder.check_starts()
    assert np.argwhere(recorder.buffer.starts).tolist() == [[0, 0], [0, 1], [1, 1]]


@pytest.mark.parametrize("obs_space", [spaces.Discrete(9), spaces.Dict(n=spaces.Discrete(9))], ids=["plain", "dict"])
def test_discrete_observations_and_actions(obs_space):
    is_dict = isinstance(obs_space, spaces.Dict)
    kind = DictSequenceReplayBuffer if is_dict else SequenceReplayBuffer
    buffer = kind(10, obs_space, spaces.Discrete(3), device="cpu", n_envs=2, horizon=2)
    for step in range(4):
        numbers = [np.array([step, step + 1]), np.array([step + 1, step + 2])]
        obs, next_obs = [{"n": number} for number in numbers] if is_dict else numbers
        buffer.add(obs, next_obs, np.array([1, 2]), np.zeros(2), np.zeros(2), [{}, {}])
    samples = buffer.sample(6)
    (obs,) = leaves(samples.observations)
    assert buffer.n_sequences == 6
    assert obs.shape == (3, 6, 1)
    assert (obs[1:] == obs[:-1] + 1).all()
    assert samples.actions.shape == (2, 6, 1)


def test_images_stay_uint8():
    space = spaces.Box(0, 255, (3, 8, 8), np.uint8)
    buffer = SequenceReplayBuffer(6, space, ACTION_SPACE, device="cpu", horizon=2)
    for step in range(9):
        image = np.full((1, 3, 8, 8), step, dtype=np.uint8)
        buffer.add(image, image + 1, np.zeros((1, 2)), np.zeros(1), np.zeros(1), [{}])
    obs = buffer.sample(20).observations
    assert obs.dtype == th.uint8
    assert obs.shape == (3, 20, 3, 8, 8)
    assert (obs[1:] == obs[:-1] + 1).all()


def test_float64_observations_are_sampled_as_float32_but_breaks_are_found_in_full_precision():
    buffer = SequenceReplayBuffer(9, spaces.Box(-1, 1, (1,), np.float64), ACTION_SPACE, device="cpu", horizon=2)
    for start, end in [(0.0, 0.1), (0.1, 0.2), (0.2 + 1e-15, 0.3)]:
        buffer.add(np.array([[start]]), np.array([[end]]), np.zeros((1, 2)), np.zeros(1), np.zeros(1), [{}])
    assert np.flatnonzero(buffer.starts).tolist() == [0]
    assert buffer.sample(3).observations.dtype == th.float32


@pytest.mark.parametrize("obs_space", [BOX, DICT], ids=["box", "dict"])
def test_it_stores_what_sb3_stores(obs_space):
    ours = make_buffer(4, 2, 2, obs_space)
    kind = DictReplayBuffer if obs_space is DICT else ReplayBuffer
    theirs = kind(8, obs_space, ACTION_SPACE, device="cpu", n_envs=2)
    rng = np.random.default_rng(0)
    for number in range(7):
        args = (rng.normal(size=(2, 2)), rng.normal(size=2), rng.random(2) < 0.3, [{"TimeLimit.truncated": True}, {}])
        for buffer in (ours, theirs):
            buffer.add(observations(buffer, [number, 9]), observations(buffer, [number + 1, 8]), *args)
    for name in ["actions", "rewards", "dones", "timeouts", "pos", "full"]:
        assert np.array_equal(getattr(ours, name), getattr(theirs, name))
    for name in ["observations", "next_observations"]:
        for left, right in zip(leaves(getattr(ours, name)), leaves(getattr(theirs, name)), strict=True):
            assert np.array_equal(left, right)


def test_a_sample_is_a_copy():
    recorder = recorded(*[ON] * 10)
    samples = recorder.buffer.sample(20)
    before = pickle.dumps(samples)
    for _ in range(10):
        recorder.add(ON)
    assert pickle.dumps(samples) == before


def test_after_a_reset_it_is_empty():
    recorder = recorded(*[ON] * 5)
    recorder.buffer.update_priorities(np.array([0]), np.array([9.0]))
    recorder.buffer.reset()
    assert recorder.buffer.n_sequences == 0
    assert recorder.buffer.max_priority == 1
    again = Recorder(recorder.buffer)
    for _ in range(4):
        again.add(ON)
        again.check_starts()


# ---------------------------------------------------------------- how often they come


def frequencies(buffer, n=40_000):
    np.random.seed(0)
    return np.bincount(buffer.sample(n).indices, minlength=buffer.starts.size).reshape(buffer.starts.shape)


def assert_drawn_from(counts, probabilities):
    """Pearson's statistic is below its mean plus four standard deviations."""
    assert (counts[probabilities == 0] == 0).all()
    possible = probabilities > 0
    expected = counts.sum() * probabilities[possible]
    freedom = possible.sum() - 1
    assert ((counts[possible] - expected) ** 2 / expected).sum() < freedom + 4 * np.sqrt(2 * freedom)


MANY = [ON] * 12 + [END] + [ON] * 3 + [BREAK] + [ON] * 9
RARE = ([ON] * 3 + [BREAK] * 9) * 5


@pytest.mark.parametrize(("endings", "rare"), [(MANY, False), (RARE, True)])
@pytest.mark.parametrize("rows", [20, 60])
def test_all_sequences_are_equally_likely(endings, rare, rows):
    recorder = Recorder(make_buffer(rows, 2))
    for both in zip(endings, endings[::-1], strict=True):
        recorder.add(*both)
    starts = recorder.buffer.starts
    assert (starts[: recorder.buffer.size()].mean() < 0.25) == rare
    assert_drawn_from(frequencies(recorder.buffer), starts / starts.sum())


def test_draws_follow_numpys_global_stream():
    buffer = recorded(*MANY).buffer
    np.random.seed(3)
    first = buffer.sample(30).indices
    torch_state = th.get_rng_state()
    np.random.seed(3)
    assert np.array_equal(buffer.sample(30).indices, first)
    assert not np.array_equal(buffer.sample(30).indices, first)
    assert th.equal(th.get_rng_state(), torch_state)


# ---------------------------------------------------------------- priorities


def prioritized(*endings, alpha=0.6, beta=0.4, **kwargs):
    return recorded(*endings, priority_exponent=alpha, importance_exponent=beta, **kwargs)


@pytest.mark.parametrize("alpha", [0.6, 1.0])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_frequencies_follow_the_priorities(alpha, as_tensor):
    buffer = prioritized(*MANY, alpha=alpha, rows=30).buffer
    indices = np.flatnonzero(buffer.starts)
    priorities = np.linspace(0.1, 5, len(indices))
    if as_tensor:  # as a loss comes
        buffer.update_priorities(indices, th.tensor(priorities, requires_grad=True).unsqueeze(1))
    else:
        buffer.update_priorities(indices, priorities)
    probabilities = np.zeros(buffer.starts.shape)
    probabilities[indices, 0] = priorities**alpha / (priorities**alpha).sum()
    assert_drawn_from(frequencies(buffer), probabilities)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_importance_weights_are_those_of_the_paper(beta):
    buffer = prioritized(*[ON] * 8, beta=beta).buffer
    priorities = np.array([0.2, 3.0, 1.0, 0.5, 7.0, 1.5])
    buffer.update_priorities(np.arange(6), priorities)
    samples = buffer.sample(64)
    probability = priorities**0.6 / (priorities**0.6).sum()
    weights = (6 * probability[samples.indices]) ** -beta
    th.testing.assert_close(samples.weights, th.tensor(weights / weights.max(), dtype=th.float32))


def test_with_uniform_sampling_priorities_have_no_effect():
    buffer = recorded(*[ON] * 8, importance_exponent=0.4).buffer
    buffer.update_priorities(np.arange(6), np.array([1e-3, 1e3, 1, 1, 1, 1]))
    assert buffer.sample(40).weights.unique().tolist() == [1.0]
    assert_drawn_from(frequencies(buffer), buffer.starts / 6)


def test_new_sequences_have_the_highest_priority_so_far():
    recorder = prioritized(*[ON] * 5, alpha=0.5)
    buffer = recorder.buffer
    buffer.update_priorities(np.array([0, 1]), np.array([0.25, 0.01]))
    recorder.add(ON)
    assert buffer.scaled_priorities[:4, 0].tolist() == [0.5, 0.1, 1.0, 1.0]
    buffer.update_priorities(np.array([0]), np.array([16.0]))
    buffer.update_priorities(np.array([0]), np.array([4.0]))
    recorder.add(ON)
    assert buffer.scaled_priorities[:5, 0].tolist() == [2.0, 0.1, 1.0, 1.0, 4.0]


def test_overwritten_rows_lose_their_priority():
    recorder = prioritized(*[ON] * 5, rows=5, horizon=2, alpha=1.0)
    buffer = recorder.buffer
    buffer.update_priorities(np.arange(4), np.array([1e6, 1.0, 1.0, 1.0]))
    recorder.add(ON)  # over row 0, where no sequence of two can start now
    assert buffer.scaled_priorities[:, 0].tolist() == [0, 1, 1, 1, 1e6]
    buffer.update_priorities(np.array([0, 1]), np.array([7.0, 3.0]))  # of a batch from before
    assert buffer.scaled_priorities[:, 0].tolist() == [0, 3, 1, 1, 1e6]
    recorder.check_starts()


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_invalid_priorities_are_refused(bad):
    buffer = prioritized(*[ON] * 8).buffer
    before = buffer.scaled_priorities.copy()
    with pytest.raises(ValueError, match="priorities must be finite and above 0, got values from .* add a small constant"):
        buffer.update_priorities(np.array([0, 1]), np.array([1.0, bad]))
    assert np.array_equal(buffer.scaled_priorities, before)
    assert buffer.max_priority == 1


# ---------------------------------------------------------------- pickling


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("n_before", [6, 30])
@pytest.mark.parametrize("obs_space", [BOX, DICT], ids=["box", "dict"])
def test_a_pickled_buffer_continues_unchanged(compact, n_before, obs_space, tmp_path):
    def fill(buffer, pickled):
        recorder = Recorder(buffer)
        np.random.seed(0)
        for step in range(n_before + 10):
            if step == n_before:
                recorder.buffer = pickled(recorder.buffer)
            recorder.add(ON, LIMIT if step % 7 == 6 else ON)
            if step >= 4:
                indices = recorder.buffer.sample(3).indices
                recorder.buffer.update_priorities(indices, 0.5 + indices)
        recorder.check_starts()
        return recorder.buffer

    def through_a_file(buffer):
        if compact:
            return with_compact_pickle(buffer)
        save_to_pkl(tmp_path / "buffer.pkl", buffer)
        return load_from_pkl(tmp_path / "buffer.pkl")

    args = {"rows": 20, "n_envs": 2, "obs_space": obs_space, "priority_exponent": 0.6, "importance_exponent": 0.4}
    whole, loaded = fill(make_buffer(**args), lambda buffer: buffer), fill(make_buffer(**args), through_a_file)
    assert whole.max_priority == loaded.max_priority > 1
    for name in ["starts", "unbroken", "scaled_priorities"]:
        assert np.array_equal(getattr(whole, name), getattr(loaded, name))
    for left, right in zip(seeded_sample(whole), seeded_sample(loaded), strict=True):
        assert np.array_equal(left, right)


def seeded_sample(buffer):
    np.random.seed(1)
    obs, *others = buffer.sample(30)
    return [*leaves(obs), *others]


def test_a_checkpoint_leaves_out_empty_rows():
    file = io.BytesIO()
    buffer = recorded(*[ON] * 8, rows=100_000).buffer
    _ReplayBufferPickler(file, buffer).dump(buffer)
    assert len(file.getvalue()) < 10_000


# ---------------------------------------------------------------- with SB3


class Counting(gym.Env):
    """
    Observation: episode, step, last action in the environment's scale. The reward is the step. Episodes are terminated
    after step 5, or truncated after step 7, in turn.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)

    def __init__(self, first_episode=0):
        self.episode = first_episode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.steps = 0
        return np.array([self.episode, 0, 0], dtype=np.float32), {}

    def step(self, action):
        self.steps += 1
        terminated, truncated = self.episode % 2 == 0 and self.steps == 5, self.steps == 7
        return np.array([self.episode, self.steps, *action], dtype=np.float32), float(self.steps), terminated, truncated, {}


class CountingDict(Counting):
    observation_space = spaces.Dict({"count": Counting.observation_space})

    def reset(self, **kwargs):
        obs, info = super().reset(**kwargs)
        return {"count": obs}, info

    def step(self, action):
        obs, *rest = super().step(action)
        return ({"count": obs}, *rest)


class SequencesOnly(SAC):
    """Collects like any off-policy algorithm of SB3, and keeps the batches for training."""

    def train(self, gradient_steps, batch_size=64):
        self.batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)


def learn_sequences(env_cls, kind, n_envs=2, normalize=False, learns=(41, 41)):
    env = DummyVecEnv([lambda i=i: env_cls(1000 * i + i) for i in range(n_envs)])
    if normalize:
        env = VecNormalize(env, clip_obs=1e6, clip_reward=1e6)
    policy = "MultiInputPolicy" if kind is DictSequenceReplayBuffer else "MlpPolicy"
    model = SequencesOnly(
        policy,
        env,
        buffer_size=120,
        learning_starts=20,
        batch_size=256,
        replay_buffer_class=kind,
        replay_buffer_kwargs={"horizon": 4},
        policy_kwargs={"net_arch": [4]},
        seed=0,
        device="cpu",
    )
    for steps in learns:
        model.learn(steps, log_interval=None)
    return model


def check_counting(obs, batch):
    """Checks that episode, step and action in a batch from :class:`Counting` are consistent."""
    episode, step, action = obs.unbind(-1)
    # SB3 calculates terminal observations back from those that VecNormalize has normalised
    episode, step = episode.round(), step.round()
    th.testing.assert_close(episode, episode[:1].expand_as(episode))
    th.testing.assert_close(step[1:], step[:-1] + batch.valid)
    th.testing.assert_close(batch.actions[..., 0], action[1:] / 2, rtol=1e-4, atol=1e-4)
    terminated = (episode[1:] % 2 == 0) & (step[1:] == 5)
    assert th.equal(batch.terminated[..., 0], terminated.float())
    assert terminated.any(dim=1).all()
    assert step.max() == 7  # time limits are among them


@pytest.mark.parametrize(("env_cls", "kind"), [(Counting, SequenceReplayBuffer), (CountingDict, DictSequenceReplayBuffer)])
@pytest.mark.parametrize("learns", [(41, 41), (160, 97)])
def test_transitions_collected_by_an_algorithm_of_sb3(env_cls, kind, learns):
    model = learn_sequences(env_cls, kind, learns=learns)
    (obs,) = leaves(model.batch.observations)
    check_counting(obs, model.batch)
    th.testing.assert_close(model.batch.rewards[..., 0], obs[1:, :, 1])
    assert model.replay_buffer.full == (sum(learns) > 120)


@pytest.mark.parametrize(("env_cls", "kind"), [(Counting, SequenceReplayBuffer), (CountingDict, DictSequenceReplayBuffer)])
def test_vec_normalize(env_cls, kind):
    model = learn_sequences(env_cls, kind, normalize=True)
    env = model.get_vec_normalize_env()
    np.random.seed(1)
    raw = model.replay_buffer.sample(256)
    np.random.seed(1)
    normalized = model.replay_buffer.sample(256, env=env)
    (raw_obs,), (obs,) = leaves(raw.observations), leaves(normalized.observations)
    check_counting(raw_obs, raw)
    (expected,) = leaves(env.normalize_obs({"count": raw_obs.numpy()} if env_cls is CountingDict else raw_obs.numpy()))
    assert np.array_equal(obs, expected)
    assert np.array_equal(normalized.rewards, env.normalize_reward(raw.rewards.numpy()))
    assert normalized.rewards.dtype == obs.dtype == th.float32
    assert not np.array_equal(obs, raw_obs)
    assert th.equal(normalized.actions, raw.actions)
    assert np.array_equal(normalized.indices, raw.indices)


def test_learning_again_starts_a_new_sequence():
    # Episodes of 7, 5 and 7 steps, three steps of one that the end of the first learn() cuts, and one of 7 steps
    buffer = learn_sequences(Counting, SequenceReplayBuffer, n_envs=1, learns=(22, 7)).replay_buffer
    assert buffer.dones[:29, 0].nonzero()[0].tolist() == [6, 11, 18, 28]
    assert np.flatnonzero(buffer.starts).tolist() == [*range(19), *range(22, 29)]


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("obs_space", [BOX, DICT], ids=["box", "dict"])
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rows": 2, "n_envs": 2}, "buffer_size=4 .* n_envs=2 .* horizon=3 .* at least 6, or a smaller horizon"),
        ({"optimize_memory_usage": True}, "does not support optimize_memory_usage=True.* Leave it at False"),
    ],
)
def test_invalid_arguments_are_refused(obs_space, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_buffer(obs_space=obs_space, **kwargs)


@pytest.mark.parametrize("alpha", [0.0, 0.6])
@pytest.mark.parametrize("endings", [[], [ON] * 2, [ON, BREAK] * 9])
def test_nothing_to_sample_is_an_error_that_says_why(alpha, endings):
    buffer = recorded(*endings, priority_exponent=alpha).buffer
    assert buffer.n_sequences == 0
    with pytest.raises(ValueError, match=f"no sequence to sample yet: the {buffer.size()} .* horizon=3 .* Collect more"):
        buffer.sample(4)
