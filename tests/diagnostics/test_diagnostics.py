"""The three checks of a model, on worlds where the answer is known."""

import io
import json
import random

import numpy as np
import pytest
import torch as th
from gymnasium import ActionWrapper, spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import HumanOutputFormat, JSONOutputFormat, Logger, TensorBoardOutputFormat
from stable_baselines3.common.vec_env import VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_mbrl.common.collection import collect_trajectories
from sb3_mbrl.common.trajectories import concatenate, trajectories_from_buffer
from sb3_mbrl.common.types import Transitions
from sb3_mbrl.diagnostics.callback import ModelDiagnosticsCallback
from sb3_mbrl.diagnostics.figures import MAX_PANELS, plot_one_step, plot_open_loop, plot_state_distribution
from sb3_mbrl.diagnostics.one_step import one_step_error
from sb3_mbrl.diagnostics.open_loop import open_loop_error
from sb3_mbrl.diagnostics.state_distribution import state_distribution
from sb3_mbrl.diagnostics.statistics import kolmogorov_smirnov
from sb3_mbrl.dynamics.ensemble import ModelStep
from sb3_mbrl.mbpo import MBPO


class LinearModel:
    """
    ``next_obs = gain * obs + action + bias + noise``, reward the sum of ``obs``, ends above ``limit``.

    :param bias: what the model gets wrong
    :param noise: standard deviation of its samples
    :param claimed: the aleatoric standard deviation that it claims; None: ``noise``
    :param epistemic: the epistemic one
    """

    def __init__(self, gain=0.9, bias=0.0, noise=0.0, claimed=None, epistemic=0.0, limit=np.inf):
        self.gain, self.bias, self.noise, self.limit = gain, bias, noise, limit
        self.claimed, self.epistemic = noise if claimed is None else claimed, epistemic

    def step(self, obs, action, generator=None, members="random", deterministic=False, uncertainty=False):
        next_obs = self.gain * obs + action + self.bias
        if members == "random" and self.noise > 0:
            next_obs = next_obs + self.noise * th.randn(obs.shape, generator=generator)
        stds = (None, None)
        if uncertainty:
            stds = (th.full((len(obs), obs.shape[1] + 1), std) for std in (self.epistemic, self.claimed))
        return ModelStep(next_obs, obs.sum(dim=1), next_obs[:, 0] > self.limit, *stds)


def linear_world(n_steps, noise=0.0, n_dims=2, seed=0, limit=np.inf):
    """A trajectory of ``LinearModel``'s world; the reward is as noisy as the observation."""
    generator = th.Generator().manual_seed(seed)
    actions = 2 * th.rand(n_steps, n_dims, generator=generator) - 1
    disturbance = noise * th.randn(n_steps, n_dims + 1, generator=generator)
    states = [th.zeros(n_dims)]
    for action, push in zip(actions, disturbance[:, :-1], strict=True):
        states.append(0.9 * states[-1] + action + push)
    obs, next_obs = th.stack(states[:-1]), th.stack(states[1:])
    return Transitions(obs, actions, next_obs, obs.sum(dim=1) + disturbance[:, -1], next_obs[:, 0] > limit)


# ---------------------------------------------------------------- one step


def test_a_perfect_model_has_no_error():
    result = one_step_error(LinearModel(limit=1.0), linear_world(5_000, limit=1.0))
    assert result.relative.max() < 1e-5
    assert result.r2.min() > 0.99999
    assert (result.termination_precision, result.termination_recall) == (1.0, 1.0)


@pytest.mark.parametrize("claimed, epistemic", [(0.2, 0.0), (0.0, 0.2), (0.12, 0.16)])
def test_a_model_that_knows_its_noise_is_calibrated(claimed, epistemic):
    model = LinearModel(claimed=claimed, epistemic=epistemic)
    result = one_step_error(model, linear_world(20_000, noise=0.2))
    assert result.rmse.numpy() == pytest.approx(0.2, rel=0.03)
    assert result.coverage_50.numpy() == pytest.approx(0.5, abs=0.02)
    assert result.coverage_90.numpy() == pytest.approx(0.9, abs=0.02)
    assert result.mean_squared_z.numpy() == pytest.approx(1.0, rel=0.05)


def test_an_overconfident_model_is_told_so():
    result = one_step_error(LinearModel(claimed=0.05), linear_world(2_000, noise=0.2))
    assert result.coverage_90.max() < 0.5
    assert result.mean_squared_z.min() > 10


def test_predicting_no_change_is_as_good_as_no_model():
    class Persistence(LinearModel):
        def step(self, obs, action, generator=None, **kwargs):
            step = super().step(obs, action, generator, **kwargs)
            return step._replace(next_obs=obs, reward=th.full((len(obs),), world.rewards.mean()))

    world = linear_world(1_000)
    result = one_step_error(Persistence(), world)
    assert result.relative.numpy() == pytest.approx(1.0, rel=1e-4)
    assert result.r2.numpy() == pytest.approx(0.0, abs=0.01)


def test_what_never_moves_is_not_judged():
    world = linear_world(100)
    still = Transitions(world.observations * 0 + 5, world.actions, world.observations * 0 + 5, world.rewards, world.terminated)
    result = one_step_error(LinearModel(), still)
    assert result.relative[:2].isnan().all()
    assert not np.isnan(result.summary()["one_step_error"])


def test_unknown_uncertainty_is_not_judged():
    class Silent(LinearModel):
        def step(self, *args, **kwargs):
            return super().step(*args, **kwargs)._replace(epistemic_std=None, aleatoric_std=None)

    assert one_step_error(Silent(), linear_world(100)).coverage_90.isnan().all()


def test_the_models_doubts_about_a_known_reward_are_not_judged():
    model = LinearModel(noise=0.1)
    model.reward_fn = lambda obs, action, next_obs: obs.sum(dim=1)
    assert one_step_error(model, linear_world(100)).coverage_90.isnan().tolist() == [False, False, True]


def test_a_prediction_that_is_not_finite_is_infinitely_wrong():
    world = linear_world(100)
    assert one_step_error(LinearModel(bias=np.nan), world).rmse[:2].isinf().all()
    assert open_loop_error(LinearModel(bias=np.nan), [world], horizon=3).expectation[:, :2].isinf().all()


def test_missed_and_false_terminations_are_counted():
    world = linear_world(1_000, limit=1.0)
    assert one_step_error(LinearModel(limit=1.5), world).termination_recall < 1
    assert one_step_error(LinearModel(limit=0.5), world).termination_precision < 1


def test_no_transitions_are_refused():
    with pytest.raises(ValueError, match="no transitions"):
        one_step_error(LinearModel(), linear_world(10)[slice(0, 0)])
    with pytest.raises(ValueError, match="no transitions"):
        open_loop_error(LinearModel(), [])


# ---------------------------------------------------------------- open loop


def test_a_perfect_model_stays_on_the_trajectory():
    result = open_loop_error(LinearModel(), [linear_world(50, seed=i) for i in range(4)], horizon=15)
    assert result.expectation.shape == (15, 3)
    assert result.expectation.max() < 1e-5
    assert result.fan.max() < 1e-5
    assert result.spread.max() == 0
    assert result.persistence[:, :2].min() > 0.1


def test_errors_compound_as_the_system_says():
    world = linear_world(500)
    result = open_loop_error(LinearModel(bias=0.01), [world], horizon=10, n_starts=50)
    expected = 0.01 * np.cumsum(0.9 ** np.arange(10))
    std = world.next_observations.std(dim=0, correction=0).numpy()
    assert result.expectation[:, :2].numpy() == pytest.approx(expected[:, None] / std, rel=1e-3)
    assert result.summary()["open_loop_reward_bias"] == pytest.approx(2 * np.r_[0, expected[:-1]].mean(), rel=1e-2)


def test_the_spread_of_samples_is_that_of_the_noise():
    world = linear_world(1_000)
    model = LinearModel(noise=0.1)
    result = open_loop_error(model, [world], 10, 50, th.Generator().manual_seed(0), n_samples=200)
    expected = 0.1 * np.sqrt(np.cumsum(0.81 ** np.arange(10)))
    std = world.next_observations.std(dim=0, correction=0).numpy()
    assert result.spread[:, :2].numpy() == pytest.approx(expected[:, None] / std, rel=0.05)


def test_a_longer_horizon_than_any_trajectory_is_refused():
    with pytest.raises(ValueError, match="shorter horizon"):
        open_loop_error(LinearModel(), [linear_world(5), linear_world(7)], horizon=8)
    open_loop_error(LinearModel(), [linear_world(5), linear_world(7)], horizon=7)


# ---------------------------------------------------------------- trajectories


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


@pytest.mark.parametrize("normalized", [False, True])
def test_fresh_trajectories_are_raw_and_end_with_the_episode(normalized):
    venv = make_vec_env("Pendulum-v1", 2, seed=0)
    env = VecNormalize(venv) if normalized else venv
    seen = []

    def predict(obs, state=None, episode_start=None, deterministic=False):
        seen.append((state, episode_start.copy()))
        return np.array([[2.0], [-1.0]]), len(seen)

    pieces = collect_trajectories(env, predict, 250)
    assert [len(piece) for piece in pieces] == [200, 50, 200, 50]
    assert pieces[0].actions.unique().tolist() == [1.0] and pieces[2].actions.unique().tolist() == [-0.5]
    for piece in pieces:
        assert piece.next_observations[:-1].numpy() == pytest.approx(piece.observations[1:].numpy(), abs=1e-5)
        assert piece.observations[:, :2].norm(dim=1).numpy() == pytest.approx(1.0, abs=1e-4)  # raw: on the circle
        assert piece.next_observations[:, :2].norm(dim=1).numpy() == pytest.approx(1.0, abs=1e-4)
        assert not piece.terminated.any()  # a time limit
    assert seen[0][0] is None and seen[7][0] == 7
    assert [t for t, (_, starts) in enumerate(seen) if starts.all()] == [0, 200]
    if normalized:
        assert env.training and env.obs_rms.count < 1  # nothing was learned from them


class Shifted(ActionWrapper):
    """CartPole whose actions are numbered from 5."""

    def __init__(self, env):
        super().__init__(env)
        self.action_space = spaces.Discrete(2, start=5)

    def action(self, action):
        return action - 5


def test_discrete_actions_of_fresh_trajectories_are_one_hot():
    env = make_vec_env("CartPole-v1", 2, seed=0, wrapper_class=Shifted)
    pieces = collect_trajectories(env, lambda obs, **kwargs: (np.array([5, 6]), None), 30)
    assert pieces[0].actions.unique(dim=0).tolist() == [[1.0, 0.0]]
    assert pieces[-1].actions.unique(dim=0).tolist() == [[0.0, 1.0]]
    assert pieces[0].terminated[-1]


def test_discrete_actions_of_a_buffer_are_one_hot():
    space = spaces.Discrete(3, start=5)
    buffer = ReplayBuffer(10, spaces.Box(-1, 1, (2,)), space, "cpu", 1)
    for t in range(3):
        buffer.add(np.full((1, 2), t / 4), np.full((1, 2), (t + 1) / 4), np.array([5 + t]), np.zeros(1), np.zeros(1), [{}])
    (piece,) = trajectories_from_buffer(buffer)
    assert th.equal(piece.actions, th.eye(3))


@pytest.mark.parametrize("space", [spaces.MultiBinary(2), spaces.Box(-np.inf, np.inf, (1,))], ids=str)
def test_actions_that_models_cannot_see_are_refused(space):
    env = make_vec_env("Pendulum-v1")
    env.action_space = space
    with pytest.raises(ValueError, match="Box with finite bounds or Discrete; got"):
        collect_trajectories(env, None, 1)


# ---------------------------------------------------------------- state distribution


@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 12))
def test_kolmogorov_smirnov_is_the_largest_distance(seed, n, m):
    generator = np.random.default_rng(seed)
    first, second = generator.integers(0, 5, (n, 2)) / 2.0, generator.integers(0, 6, (m, 2)) / 2.0  # many ties
    result = kolmogorov_smirnov(th.as_tensor(first), th.as_tensor(second))
    for dim in range(2):
        points = np.r_[first[:, dim], second[:, dim]]
        expected = max(abs((first[:, dim] <= x).mean() - (second[:, dim] <= x).mean()) for x in points)
        assert result[dim] == pytest.approx(expected, abs=1e-6)


def test_shifts_are_in_units_of_the_real_std():
    real = np.random.default_rng(0).normal(3.0, 2.0, (50_000, 2))
    imagined = np.random.default_rng(1).normal([3.0, 5.0], [2.0, 3.0], (50_000, 2))
    result = state_distribution(real, imagined)
    assert result.mean_shift.tolist() == pytest.approx([0.0, 1.0], abs=0.03)
    assert result.std_shift.tolist() == pytest.approx([0.0, 0.5], abs=0.03)
    assert result.ks[0] < 0.02 < 0.3 < result.ks[1]
    assert result.summary()["states_mean_shift_worst"] == pytest.approx(1.0, abs=0.03)


def test_states_outside_the_observed_range_are_counted():
    real = th.linspace(0, 1, 101).repeat(2, 1).T
    imagined = th.tensor([[0.5, 0.5], [1.5, 0.5], [0.5, -0.5], [1.0 + 1e-6, 0.0], [th.nan, 0.5]])
    result = state_distribution(real, imagined)
    assert result.outside.tolist() == pytest.approx([2 / 5, 1 / 5])
    assert result.outside_any == pytest.approx(3 / 5)
    wider = state_distribution(real, imagined[:4], (np.full(2, -2.0), np.full(2, 2.0)))
    assert wider.outside_any == 0


def test_a_dimension_that_never_moved_is_not_judged():
    real = np.c_[np.ones(50), np.arange(50)]
    result = state_distribution(real, real + np.array([1e-4, 0.0]))
    assert result.ks.isnan().tolist() == [True, False]
    assert result.outside_any == 0


@pytest.mark.parametrize("real, imagined", [((0, 2), (3, 2)), ((3, 2), (0, 2)), ((3, 2), (3, 3)), ((3,), (3,))])
def test_states_that_cannot_be_compared_are_refused(real, imagined):
    with pytest.raises(ValueError, match="Expected states"):
        state_distribution(np.zeros(real), np.zeros(imagined))


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize("n_dims, n_panels", [(1, 2), (20, MAX_PANELS)])
def test_figures_show_the_worst_dimensions(n_dims, n_panels):
    world = linear_world(60, noise=0.1, n_dims=n_dims)
    world.observations[:, 0] = 1.0
    world.next_observations[:, 0] = 1.0  # never moves
    model = LinearModel(noise=0.1, epistemic=0.05)
    one_step, open_loop = one_step_error(model, world), open_loop_error(model, [world], horizon=5)
    states = state_distribution(world.next_observations, world.next_observations + 0.1)
    figures = [plot_one_step(one_step), plot_open_loop(open_loop), plot_state_distribution(states)]
    for figure, n in zip(figures, (n_panels, n_panels, min(n_dims, MAX_PANELS)), strict=True):
        assert len(figure.axes) == 2 + n
        figure.savefig(io.BytesIO(), dpi=20)


def test_figures_of_a_model_that_diverges_or_claims_nothing_are_drawn():
    world = linear_world(30)
    for model in (LinearModel(gain=1e30), LinearModel()):
        plot_one_step(one_step_error(model, world)).savefig(io.BytesIO(), dpi=20)
        plot_open_loop(open_loop_error(model, [world], horizon=5)).savefig(io.BytesIO(), dpi=20)


def test_figures_carry_the_names_of_the_dimensions():
    result = one_step_error(LinearModel(noise=0.1), linear_world(30))
    titles = [ax.get_title() for ax in plot_one_step(result, ["height", "speed"]).axes[2:]]
    assert [title.split(":")[0] for title in titles] == ["height", "speed", "reward"]
    with pytest.raises(ValueError, match="2 dimensions"):
        plot_one_step(result, ["height"])


# ---------------------------------------------------------------- the callback


def make_mbpo(env="Pendulum-v1", **changes):
    settings = dict(learning_starts=40, batch_size=32, gradient_steps=1, buffer_size=1_000, seed=0, device="cpu")
    settings |= dict(policy_kwargs={"net_arch": [16]}, model_train_freq=50, rollouts_per_step=10, real_ratio=0.25)
    settings |= dict(dynamics_kwargs={"ensemble_size": 3, "n_elites": 2, "net_arch": [16, 16]}, fit_kwargs={"max_epochs": 3})
    return MBPO("MlpPolicy", env, **{**settings, **changes})


class Records(JSONOutputFormat):
    """What was written, by time step."""

    def __init__(self):
        self.file = io.StringIO()

    def steps(self):
        rows = [json.loads(line) for line in self.file.getvalue().splitlines()]
        return [row["time/total_timesteps"] for row in rows if "diagnostics/seconds" in row]


def watched(model, **arguments):
    """The model, trained for nothing yet, its callback, and what will be logged."""
    records = Records()
    model.set_logger(Logger(None, [records]))
    return model, ModelDiagnosticsCallback(**{"horizon": 5, "n_rows": 64, **arguments}), records


def test_scalars_and_figures_are_logged(tmp_path):
    model = make_mbpo()
    table = io.StringIO()
    board = TensorBoardOutputFormat(str(tmp_path / "board"))
    model.set_logger(Logger(str(tmp_path), [board, HumanOutputFormat(table), Records()]))
    model.learn(110, callback=ModelDiagnosticsCallback(100, log_dir=tmp_path / "checks", horizon=5))
    model.logger.close()

    events = EventAccumulator(str(tmp_path / "board")).Reload()
    names = {"one_step", "open_loop", "state_distribution"}
    assert set(events.Tags()["images"]) == {f"diagnostics/{name}" for name in names}
    scalars = {tag.removeprefix("diagnostics/") for tag in events.Tags()["scalars"] if tag.startswith("diagnostics/")}
    assert scalars >= {"one_step_error", "coverage_90", "open_loop_last", "states_ks", "seconds"}
    assert not scalars & {"termination_precision", "termination_recall"}  # Pendulum has no termination
    assert all(f" {name} " in table.getvalue() for name in scalars)  # none was truncated
    files = {path.name for path in (tmp_path / "checks").iterdir()}
    assert files == {f"{name}_100.png" for name in names}


def test_training_does_not_notice(tmp_path):
    def train(callback):
        model = make_mbpo()
        model.learn(120, callback=callback)
        streams = (random.getstate(), np.random.get_state()[1].tolist(), th.get_rng_state().tolist())
        return model, {"model": model.dynamics.state_dict(), **model.get_parameters()}, streams

    plain, expected, expected_streams = train(None)
    watched_model, parameters, streams = train(ModelDiagnosticsCallback(60, horizon=5, log_dir=tmp_path))
    assert len(list(tmp_path.iterdir())) > 0
    assert streams == expected_streams
    assert th.equal(watched_model._generator.get_state(), plain._generator.get_state())
    for name in ("model", "policy"):
        assert all(th.equal(value, parameters[name][key]) for key, value in expected[name].items())
    assert watched_model.policy.training == plain.policy.training
    assert watched_model.dynamics.training == plain.dynamics.training


def test_environments_in_parallel_and_normalized():
    env = VecNormalize(make_vec_env("Pendulum-v1", 3, seed=0))
    model, callback, records = watched(make_mbpo(env), diag_freq=50)
    model.learn(250, callback=CallbackList([callback]))
    assert records.steps() == [51, 102, 153, 204]


def test_the_clock_survives_a_second_learn():
    model, callback, records = watched(make_mbpo(), diag_freq=60)
    model.learn(100, callback=callback)
    model.learn(50, callback=callback, reset_num_timesteps=False)
    assert records.steps() == [60, 120]
    model.learn(70, callback=callback)
    assert records.steps() == [60, 120, 60]


def test_an_unfitted_model_is_waited_for():
    model, callback, records = watched(make_mbpo(learning_starts=100), diag_freq=30)
    model.learn(100, callback=callback)
    assert records.steps() == []
    model.learn(60, callback=callback, reset_num_timesteps=False)
    assert records.steps() == [102, 132]


def test_an_algorithm_that_keeps_no_imagined_states():
    model, callback, records = watched(make_mbpo(), diag_freq=60)
    model.learn(59, callback=callback)
    model.model_buffer, kept = None, model.model_buffer
    callback.init_callback(model)
    callback._check()
    model.model_buffer = kept
    assert len(records.steps()) == 1 and "states_ks" not in records.file.getvalue()


@pytest.mark.parametrize("algorithm, missing", [(PPO, "dynamics"), (SAC, "dynamics")])
def test_an_algorithm_without_a_model_is_refused(algorithm, missing):
    model = algorithm("MlpPolicy", "Pendulum-v1", device="cpu")
    with pytest.raises(ValueError, match=rf"{algorithm.__name__} has no \.{missing}"):
        model.learn(10, callback=ModelDiagnosticsCallback())


@pytest.mark.parametrize("argument", ["diag_freq", "n_rows", "horizon"])
def test_numbers_below_one_are_refused(argument):
    with pytest.raises(ValueError, match=f"{argument} must be an integer (of at least|from) 1"):
        ModelDiagnosticsCallback(**{argument: 0})


def test_nothing_is_drawn_for_nobody(monkeypatch):
    monkeypatch.setattr("sb3_mbrl.diagnostics.callback.plot_one_step", lambda result: pytest.fail("drawn"))
    model, callback, records = watched(make_mbpo(), diag_freq=60, verbose=0)
    model.learn(70, callback=callback)
    assert records.steps() == [60]


def test_concatenation_keeps_the_order():
    pieces = [linear_world(3), linear_world(4, seed=1)]
    assert th.equal(concatenate(pieces).actions, th.cat([piece.actions for piece in pieces]))
