import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_mbrl.dynamics import LearnedTermination, ProbabilisticEnsemble, SimulatorModel
from sb3_mbrl.envs import LearnedModelEnv, LearnedModelVecEnv, collect
from sb3_mbrl.mbpo import MBPO
from sb3_mbrl.tasks.termination_rules import NeverTerminates, TerminatesOutside


@pytest.fixture
def from_drift(drift, drift_ends, tiny_fit):
    """``from_drift(cls=..., **changes)``: collected from :class:`Drift` and fitted."""

    def make(cls=LearnedModelEnv, **changes):
        kwargs = {"max_episode_steps": 10, "termination_fn": drift_ends, **tiny_fit, **changes}
        if cls is LearnedModelVecEnv:
            kwargs = {"n_envs": 3, **kwargs}
        return cls.from_env(drift(), **kwargs)

    return make


# -- Collecting --------------------------------------------------------------------------------------------------------


def test_collect_plays_a_policy_from_the_first_observation(drift):
    class Right:
        def predict(self, obs, state=None, episode_start=None, deterministic=False):
            return np.ones((len(obs), 1), np.float32), state

    trajectories = collect(drift(), 60, Right(), seed=0)
    assert sum(len(trajectory) for trajectory in trajectories) == 60
    assert all((trajectory.actions == 1).all() for trajectory in trajectories)
    assert all(trajectory.terminated[-1] for trajectory in trajectories[:-1])
    assert all((trajectory.observations[0].abs() <= 0.5).all() for trajectory in trajectories)


def test_random_actions_are_seeded_and_fill_the_space():
    first, again, other = (collect("CartPole-v1", 50, seed=seed) for seed in (1, 1, 2))
    assert all(th.equal(a.observations, b.observations) for a, b in zip(first, again, strict=True))
    assert not th.equal(first[0].observations[0], other[0].observations[0])
    actions = th.cat([trajectory.actions for trajectory in collect("Pendulum-v1", 200, seed=0)])
    assert actions.min() < -0.9 and actions.max() > 0.9


def test_collect_shares_the_steps_among_the_environments(drift):
    env = DummyVecEnv([drift, drift])
    assert sum(len(trajectory) for trajectory in collect(env, 21)) == 22


@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")
@pytest.mark.parametrize("progress_bar", [False, True])
def test_collecting_and_fitting_show_their_progress(from_drift, drift, drift_ends, tiny_fit, capsys, progress_bar):
    env = from_drift(n_steps=40, verbose=1, progress_bar=progress_bar)
    out = capsys.readouterr().out
    assert "Collected 40 real transitions in" in out and "Model fitted: " in out
    more = collect(drift(), 40, seed=0)
    env.refit(more, verbose=1, progress_bar=progress_bar)
    arguments = {name: value for name, value in tiny_fit.items() if name != "n_steps"}
    LearnedModelEnv.from_dataset(
        more, drift(), max_episode_steps=10, termination_fn=drift_ends, verbose=1, progress_bar=progress_bar, **arguments
    )
    assert capsys.readouterr().out.count("Model fitted: ") == 2
    from_drift(n_steps=40).refit(more)
    assert capsys.readouterr().out == ""


def test_collecting_nothing_is_refused(drift):
    with pytest.raises(ValueError, match="n_steps"):
        collect(drift(), 0)


# -- from_env ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id, termination", [("Pendulum-v1", NeverTerminates), ("CartPole-v1", TerminatesOutside)])
def test_from_env_in_one_line(env_id, termination, tiny_fit):
    env = LearnedModelEnv.from_env(env_id, **tiny_fit)
    venv = LearnedModelVecEnv.from_env(env_id, n_envs=2, **tiny_fit)
    assert isinstance(env.dynamics, ProbabilisticEnsemble)
    assert isinstance(env.dynamics.termination_fn, termination)
    assert len(env.transitions) == len(venv.transitions) == 200
    assert (
        env.imagination.rules.max_episode_steps == venv.imagination.rules.max_episode_steps == env.env.spec.max_episode_steps
    )
    assert env.env.unwrapped.spec.id == env_id
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    venv.seed(0)
    assert venv.reset().shape == (2, len(obs))
    # The same seed collects and fits the same
    assert th.equal(env.dynamics.weights[0], venv.dynamics.weights[0])


def test_an_unknown_task_learns_when_it_ends(from_drift):
    assert isinstance(from_drift(termination_fn="auto").dynamics.termination_fn, LearnedTermination)
    # Its rule is known, but not asked for
    pendulum = LearnedModelEnv.from_env(
        "Pendulum-v1", 50, termination_fn="learned", dynamics_kwargs={"net_arch": [4]}, fit_kwargs={"max_epochs": 1}
    )
    assert isinstance(pendulum.dynamics.termination_fn, LearnedTermination)


def test_a_wrapper_that_ends_episodes_contradicts_the_known_rule(tiny_fit):
    class Impatient(gym.Wrapper):
        def step(self, action):
            obs, reward, _, truncated, info = self.env.step(action)
            return obs, reward, bool(abs(obs[2]) > 0.5), truncated, info

    with pytest.raises(ValueError, match="never terminates.* a wrapper ends"):
        LearnedModelEnv.from_env(Impatient(gym.make("Pendulum-v1")), **tiny_fit)


def test_functions_of_the_user_are_used(from_drift):
    with pytest.warns(UserWarning, match=r"termination_fn disagrees with \d+ of 200 real transitions"):
        env = from_drift(
            reward_fn=lambda obs, action, next_obs: 7 * th.ones(len(obs)), termination_fn=lambda obs, *_: obs[:, 0] < 2
        )
    env.reset(seed=0)
    _, reward, terminated, _, _ = env.step(env.action_space.sample())
    assert reward == 7.0 and terminated


def test_where_episodes_start(from_drift):
    everywhere = from_drift(start_states="all")
    at_first = from_drift(start_states="initial")
    given = from_drift(start_states=np.array([[0.25, 0.125]]))
    sampled = from_drift(start_states=lambda n, generator: 0.1 * th.rand(n, 2, generator=generator))
    observed = {tuple(row) for row in everywhere.transitions.observations.tolist()}
    starts = [env.reset(seed=0)[0] for env in (everywhere, at_first, given, sampled)]
    assert tuple(starts[0].tolist()) in observed and tuple(starts[1].tolist()) in observed
    assert np.abs(starts[1]).max() <= 0.5
    assert len(at_first.imagination._pool) < len(everywhere.imagination._pool) == 200
    assert starts[2].tolist() == [0.25, 0.125]
    assert 0 <= starts[3].min() and starts[3].max() <= 0.1


def test_predictions_stay_near_what_was_observed(tiny_fit):
    env = LearnedModelVecEnv.from_env("CartPole-v1", n_envs=1, **tiny_fit)
    seen = th.cat([env.transitions.observations, env.transitions.next_observations])
    low, high = seen.amin(dim=0).numpy(), seen.amax(dim=0).numpy()
    expected = np.minimum(high + 0.5 * (high - low), env.observation_space.high)
    np.testing.assert_allclose(env.imagination.high, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="lies outside of the bounds of predictions"):
        env.imagination.set_starts(np.full((1, 4), 3.0), (env.imagination.low, env.imagination.high))


class Beyond(gym.ObservationWrapper):
    """Observations exceed the declared bounds, by a tenth in the first entry and by a rounding error in the second."""

    def __init__(self, env, low=-0.9, high=0.9):
        super().__init__(env)
        low, high = np.array([[low, -np.inf], [high, np.inf]], np.float32)
        self.observation_space = spaces.Box(low, high)

    def observation(self, obs):
        return np.array([np.sin(10 * obs[0]), obs[1]], np.float32)


@pytest.mark.parametrize("start_states", ["all", "initial"])
def test_recorded_observations_outside_of_the_declared_bounds_widen_them(drift, from_drift, start_states, tiny_fit):
    kwargs = {**tiny_fit, "start_states": start_states, "max_episode_steps": 10}
    env = LearnedModelVecEnv.from_env(Beyond(drift()), n_envs=4, **kwargs)
    seen = th.cat([env.transitions.observations, env.transitions.next_observations])[:, 0]
    assert seen.max() > 0.95
    assert env.imagination.high[0] == seen.max() and env.imagination.low[0] == seen.min()
    assert th.equal(env.imagination._pool.unique(dim=0), env.imagination._pool.unique(dim=0).clamp(-1, 1))
    env.refit(collect(Beyond(drift()), 20, seed=1), max_epochs=1)
    env.reset()
    env.step(np.zeros((4, 1), np.float32))


def test_a_rounding_error_does_not_widen_the_bounds(drift, tiny_fit):
    env = Beyond(drift(), -1.0 + 1e-5, 1.0 - 1e-5)
    imagined = LearnedModelVecEnv.from_env(env, n_envs=1, max_episode_steps=10, **tiny_fit)
    assert env.observation_space.contains(imagined.imagination._pool.amax(dim=0).numpy())
    assert (imagined.imagination.high.numpy() <= env.observation_space.high).all()


def test_first_observations_outside_of_the_bounds_are_accepted(drift, tiny_fit):
    model = LearnedModelEnv.from_env(Beyond(drift()), max_episode_steps=10, **tiny_fit).dynamics
    env = LearnedModelEnv(Beyond(drift()), model, max_episode_steps=10)
    assert env.observation_space.contains(env.reset(seed=0)[0])


def test_bounds_may_be_given(from_drift, drift):
    env = from_drift(observation_bounds=np.array([[-0.95, -0.9], [0.95, 0.9]]), start_states="initial")
    env.refit(collect(drift(), 20, seed=1), max_epochs=1)
    np.testing.assert_allclose(env.imagination.high, [0.95, 0.9])


def test_rules_reach_the_imagination(from_drift):
    rules = from_drift(LearnedModelVecEnv, propagation="tsinf", uncertainty_penalty=0.5, stagger=False).imagination.rules
    assert (rules.propagation, rules.uncertainty_penalty, rules.stagger) == ("tsinf", 0.5, False)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"max_episode_steps": None}, UserWarning, "pass max_episode_steps="),
        ({"max_episode_steps": 0}, ValueError, "max_episode_steps"),
        ({"propagation": "ts2"}, ValueError, "propagation"),
        ({"penalty": 1.0}, TypeError, "penalty"),
        ({"termination_fn": "sometimes"}, ValueError, "termination_fn"),
        ({"dynamics_kwargs": {"n_members": 3}}, TypeError, "n_members"),
        ({"fit_kwargs": {"epochs": 3}}, TypeError, "epochs"),
        ({"start_states": "any"}, ValueError, "start_states must be 'all', 'initial'"),
        ({"start_states": np.zeros((4, 3))}, ValueError, r"start_states must have shape \(M, 2\).*got \(4, 3\)"),
        ({"reward_fn": lambda obs, *_: obs}, ValueError, "reward_fn must return a float tensor"),
        ({"termination_fn": lambda obs, *_: obs[:, 0].numpy()}, ValueError, r"got numpy\.ndarray"),
    ],
)
def test_bad_arguments_are_refused_before_collecting(drift, tiny_fit, monkeypatch, changes, error, message):
    env = drift()
    monkeypatch.setattr(env, "step", lambda action: pytest.fail("collected"), raising=False)
    with pytest.raises(error, match=message):
        LearnedModelEnv.from_env(env, **{**tiny_fit, "max_episode_steps": 5, **changes})


def test_an_environment_that_is_not_supported_is_refused_before_collecting(drift, tiny_fit, monkeypatch):
    venv = DummyVecEnv([drift])
    monkeypatch.setattr(venv, "step_async", lambda actions: pytest.fail("collected"))
    with pytest.raises(ValueError, match="use LearnedModelVecEnv"):
        LearnedModelEnv.from_env(venv, max_episode_steps=5, **tiny_fit)


@pytest.mark.parametrize("n_envs, error", [({"n_envs": 0}, ValueError), ({}, TypeError)])
def test_a_number_of_environments_is_needed(drift, tiny_fit, n_envs, error):
    with pytest.raises(error, match="n_envs"):
        LearnedModelVecEnv.from_env(drift(), max_episode_steps=5, **tiny_fit, **n_envs)


def test_observations_that_are_not_vectors_are_refused(tiny_fit):
    with pytest.raises(ValueError, match="flat Box"):
        LearnedModelVecEnv.from_env("FrozenLake-v1", n_envs=1, **tiny_fit)


# -- refit -------------------------------------------------------------------------------------------------------------


def test_refit_fits_to_all_transitions_and_starts_from_them(from_drift, drift):
    env = from_drift(LearnedModelVecEnv, start_states="initial")
    n_initial, weights = len(env.imagination._pool), env.dynamics.weights[0].clone()
    env.seed(0)
    env.reset()
    report = env.refit(collect(drift(), 100, seed=1))
    assert len(env.transitions) == 300 and report.n_train + report.n_holdout == 300
    assert len(env.imagination._pool) > n_initial
    assert not th.equal(weights, env.dynamics.weights[0])
    env.step(np.zeros((3, 1), np.float32))  # those under way go on


def test_refit_to_a_batch_adds_no_initial_states(from_drift):
    env = from_drift(start_states="initial")
    n_initial = len(env.imagination._pool)
    env.refit(env.transitions[:50])
    assert len(env.transitions) == 250 and len(env.imagination._pool) == n_initial


def test_refit_keeps_the_start_states_that_were_given(from_drift):
    env = from_drift()
    fixed = LearnedModelVecEnv(env.dynamics, 2, np.zeros((1, 2)), max_episode_steps=5)
    assert fixed.transitions is None
    for n_known in (50, 100):
        fixed.refit(env.transitions[:50], max_epochs=1)
        assert len(fixed.transitions) == n_known and len(fixed.imagination._pool) == 1


def test_a_simulator_is_not_fitted():
    env = LearnedModelEnv("Pendulum-v1", SimulatorModel("Pendulum-v1"))
    with pytest.raises(ValueError, match="SimulatorModel cannot be fitted"):
        env.refit(collect("Pendulum-v1", 10))


# -- From what there is ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mbpo():
    """Trained until its first fit."""
    model = MBPO(
        "MlpPolicy",
        "Pendulum-v1",
        learning_starts=60,
        model_train_freq=50,
        gradient_steps=1,
        rollouts_per_step=4,
        dynamics_kwargs={"ensemble_size": 2, "n_elites": 2, "net_arch": [16]},
        fit_kwargs={"max_epochs": 2},
        policy_kwargs={"net_arch": [16]},
        seed=0,
        device="cpu",
    )
    return model.learn(110)


def test_from_algorithm(mbpo):
    venv = LearnedModelVecEnv.from_algorithm(mbpo, n_envs=2, propagation="tsinf")
    assert venv.dynamics is mbpo.dynamics
    assert venv.imagination.rules.max_episode_steps == 200 and len(venv.transitions) == 110
    assert venv.reset().shape == (2, 3)
    env = LearnedModelEnv.from_algorithm(mbpo, start_states="initial", max_episode_steps=7)
    assert env.env.unwrapped is not mbpo.get_env().envs[0].unwrapped  # the algorithm goes on in its own
    np.testing.assert_array_equal(env.reset(seed=0)[0], mbpo.replay_buffer.observations[0, 0])


def test_an_algorithm_without_a_model_is_refused(mbpo, tmp_path):
    with pytest.raises(ValueError, match="does not have both `dynamics` and `replay_buffer`"):
        LearnedModelVecEnv.from_algorithm(object(), n_envs=2)
    mbpo.save(tmp_path / "mbpo")
    loaded = MBPO.load(tmp_path / "mbpo", env="Pendulum-v1")
    loaded.replay_buffer.reset()
    with pytest.raises(ValueError, match="replay buffer is empty"):
        LearnedModelVecEnv.from_algorithm(loaded, n_envs=2)


def test_from_a_file(drift_model, drift, tmp_path):
    path = tmp_path / "model.safetensors"
    drift_model.save(path)
    loaded = ProbabilisticEnsemble.load(path, device="cpu", termination_fn=drift_model.termination_fn)
    env = LearnedModelEnv(drift(), loaded, max_episode_steps=5)
    env.reset(seed=0)
    assert env.observation_space is env.env.observation_space


def test_the_real_environment_of_a_vector_is_made_anew(tiny_fit):
    venv = DummyVecEnv([lambda: gym.make("Pendulum-v1")])
    env = LearnedModelEnv.from_env(venv, **tiny_fit)
    assert env.env.spec.id == "Pendulum-v1" and env.env.unwrapped is not venv.envs[0].unwrapped
