import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

from sb3_mbrl.common.trajectories import concatenate, initial_rows, real_transitions, trajectories_from_buffer
from sb3_mbrl.common.types import Transitions

OBS_DIM, ACTION_DIM = 3, 2
OBS_SPACE = spaces.Box(-np.inf, np.inf, (OBS_DIM,), np.float32)
ACTION_SPACE = spaces.Box(-2.0, 2.0, (ACTION_DIM,), np.float32)


@st.composite
def histories(draw):
    n_envs, n_steps = draw(st.integers(1, 3)), draw(st.integers(1, 30))
    ends = st.lists(st.sampled_from(["", "", "", "done", "timeout", "reset"]), min_size=n_steps, max_size=n_steps)
    return [draw(ends) for _ in range(n_envs)], draw(st.integers(1, 40)), draw(st.one_of(st.none(), st.integers(1, 40)))


@given(histories())
def test_pieces_never_cross_the_end_of_an_episode(history):
    ends, size, n_rows = history
    n_envs, n_steps = len(ends), len(ends[0])
    space = spaces.Box(-1, 1, (1,))
    buffer = ReplayBuffer(size * n_envs, spaces.Box(-np.inf, np.inf, (3,)), space, "cpu", n_envs)
    # An observation says where it comes from: environment, episode, step of the environment's life
    episode = np.zeros(n_envs)
    for t in range(n_steps):
        now = [ends[i][t] for i in range(n_envs)]
        obs = np.stack([np.arange(n_envs), episode, np.full(n_envs, t)], axis=1)
        next_obs = obs + np.array([0, 0, 1])
        done = np.array([end in ("done", "timeout") for end in now])
        infos = [{"TimeLimit.truncated": end == "timeout"} for end in now]
        buffer.add(obs, next_obs, np.zeros((n_envs, 1)), np.full(n_envs, t), done, infos)
        episode += [end != "" for end in now]

    pieces = trajectories_from_buffer(buffer, n_rows=n_rows)
    kept = min(n_steps, size) if n_rows is None else min(n_steps, size, -(-n_rows // n_envs))
    assert sum(len(piece) for piece in pieces) == kept * n_envs
    for piece in pieces:
        env, episodes, steps = piece.observations.T
        assert len(set(env.tolist())) == len(set(episodes.tolist())) == 1
        assert steps.tolist() == piece.rewards.tolist() == list(range(int(steps[0]), int(steps[0]) + len(piece)))
        assert (piece.next_observations[:-1] == piece.observations[1:]).all()
        assert not piece.terminated[:-1].any()
        terminates = ends[int(env[0])][int(steps[-1])] == "done"
        assert piece.terminated[-1] == terminates
    # Nor are they shorter than need be: no two of them fit together
    firsts = {tuple(piece.observations[0].tolist()) for piece in pieces}
    assert not firsts & {tuple(piece.next_observations[-1].tolist()) for piece in pieces}


def test_discrete_actions_of_a_buffer_are_one_hot():
    space = spaces.Discrete(3, start=5)
    buffer = ReplayBuffer(10, spaces.Box(-1, 1, (2,)), space, "cpu", 1)
    for t in range(3):
        buffer.add(np.full((1, 2), t / 4), np.full((1, 2), (t + 1) / 4), np.array([5 + t]), np.zeros(1), np.zeros(1), [{}])
    (piece,) = trajectories_from_buffer(buffer)
    assert th.equal(piece.actions, th.eye(3))


def test_concatenation_keeps_the_order():
    rows = th.arange(7.0).unsqueeze(1)
    whole = Transitions(rows, rows, rows, rows.squeeze(1), rows.squeeze(1) > 3)
    for name, column in vars(concatenate([whole[slice(0, 3)], whole[slice(3, 7)]])).items():
        assert th.equal(column, getattr(whole, name))


def filled(size, n_envs, steps):
    """``steps`` lists (done, time limit) per environment over time; observations and rewards are consecutive numbers."""
    buffer = ReplayBuffer(size * n_envs, OBS_SPACE, ACTION_SPACE, device="cpu", n_envs=n_envs)
    for t, ends in enumerate(steps):
        number = 10.0 * t + np.arange(n_envs)
        obs = np.repeat(number[:, None], OBS_DIM, axis=1)
        done, time_limit = (np.array(flags) for flags in zip(*ends, strict=True))
        infos = [{"TimeLimit.truncated": bool(flag)} for flag in time_limit]
        buffer.add(obs, obs + 0.5, np.zeros((n_envs, ACTION_DIM)), -number, done, infos)
    return buffer


ON, END, LIMIT = (False, False), (True, False), (True, True)


def test_every_transition_of_every_environment_is_one_row():
    rows = real_transitions(filled(10, 2, [[ON, ON], [END, LIMIT], [ON, ON]]), "cpu")
    assert rows.observations[:, 0].tolist() == [0, 1, 10, 11, 20, 21]
    assert rows.rewards.tolist() == [0, -1, -10, -11, -20, -21]
    th.testing.assert_close(rows.next_observations, rows.observations + 0.5)
    assert rows.actions.shape == (6, ACTION_DIM)


def test_time_limits_are_not_terminations():
    rows = real_transitions(filled(10, 2, [[ON, ON], [END, LIMIT], [LIMIT, END]]), "cpu")
    assert rows.terminated.tolist() == [False, False, True, False, False, True]


def test_a_buffer_that_wrapped_around_gives_all_its_rows_once():
    rows = real_transitions(filled(3, 1, [[ON]] * 5), "cpu")
    assert sorted(rows.observations[:, 0].tolist()) == [20, 30, 40]


def test_rows_are_raw_float32_single_steps_for_every_kind_of_buffer():
    wide = spaces.Box(-np.inf, np.inf, (OBS_DIM,), np.float64)
    buffer = NStepReplayBuffer(100, wide, ACTION_SPACE, device="cpu", n_envs=1)
    for step in range(9):
        buffer.add(np.zeros((1, 3)), np.ones((1, 3)), np.zeros((1, 2)), np.full(1, step), np.full(1, step == 6), [{}])
    rows = real_transitions(buffer, "cpu")
    assert rows.rewards.tolist() == list(range(9))
    assert {rows.observations.dtype, rows.actions.dtype, rows.next_observations.dtype, rows.rewards.dtype} == {th.float32}


def test_actions_of_any_shape_become_flat():
    buffer = ReplayBuffer(5, OBS_SPACE, spaces.Box(-1, 1, (2, 3)), device="cpu")
    buffer.add(np.zeros((1, 3)), np.zeros((1, 3)), np.arange(6).reshape(1, 2, 3), np.zeros(1), np.zeros(1), [{}])
    assert real_transitions(buffer, "cpu").actions.tolist() == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("n_envs", [1, 2])
def test_discrete_actions_become_one_hot(n_envs):
    buffer = ReplayBuffer(4 * n_envs, OBS_SPACE, spaces.Discrete(3, start=2), device="cpu", n_envs=n_envs)
    zeros = np.zeros((n_envs, OBS_DIM))
    for step in range(6):  # wraps around: steps 2 to 5 stay
        action = 2 + (step + np.arange(n_envs)[:, None]) % 3
        buffer.add(zeros, zeros, action, np.zeros(n_envs), np.zeros(n_envs), [{}] * n_envs)
    actions = real_transitions(buffer, "cpu").actions
    assert actions.dtype == th.float32
    assert actions.argmax(dim=1).tolist() == [(step + env) % 3 for step in range(2, 6) for env in range(n_envs)]
    assert actions.sum(dim=1).tolist() == [1.0] * (4 * n_envs)
    assert set(actions.unique().tolist()) == {0.0, 1.0}


def test_an_empty_buffer_has_no_rows():
    buffer = ReplayBuffer(5, OBS_SPACE, ACTION_SPACE, device="cpu")
    assert len(real_transitions(buffer, "cpu")) == 0
    assert len(initial_rows(buffer)) == 0


def initial_observations(buffer):
    return real_transitions(buffer, "cpu").observations[initial_rows(buffer), 0].tolist()


def test_an_episode_begins_first_of_all_and_after_each_end():
    assert initial_observations(filled(10, 1, [[ON], [END], [ON], [LIMIT], [ON]])) == [0, 20, 40]


def test_episodes_of_each_environment_begin_on_their_own():
    assert initial_observations(filled(10, 2, [[ON, END], [END, ON], [ON, ON]])) == [0, 1, 11, 20]


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        # times 3 4 2 in the array: of the oldest row (time 2) nobody knows whether it begins an episode
        ([ON, ON, ON, ON, ON], []),
        ([ON, END, ON, ON, END], []),
        ([ON, ON, END, ON, ON], [30]),  # the last row of the array precedes the first
        ([ON, ON, ON, END, ON], [40]),
        ([ON, ON, END, END, END], [30, 40]),
    ],
)
def test_beginnings_in_a_buffer_that_wrapped_around(ends, expected):
    assert initial_observations(filled(3, 1, [[end] for end in ends])) == expected


def test_whether_the_oldest_row_of_a_full_buffer_begins_an_episode_is_unknown():
    assert initial_observations(filled(3, 1, [[ON], [END], [END]])) == [20]
