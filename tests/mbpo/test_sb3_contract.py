"""MBPO is SAC with a model: same parameters, same step counters, same random streams."""

import random

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl.acceleration.precision import HAS_BFLOAT16
from sb3_mbrl.common.trajectories import real_transitions

OWN_ARGUMENTS = {"model_train_freq", "rollouts_per_step", "real_ratio", "dynamics_kwargs", "fit_kwargs"}


@pytest.fixture
def make_sac(tiny):
    def make(env="PointMass-v0", **changes):
        arguments = {name: value for name, value in tiny.items() if name not in OWN_ARGUMENTS}
        return SAC("MlpPolicy", env, **{**arguments, **changes})

    return make


def assert_same_learner(mbpo, sac):
    ours, theirs = mbpo.get_parameters(), sac.get_parameters()
    for name, value in theirs["policy"].items():
        assert th.equal(value, ours["policy"][name]), name
    if sac.log_ent_coef is not None:
        assert th.equal(sac.log_ent_coef, mbpo.log_ent_coef)
    for name in ("actor", "critic"):
        moments, expected = (getattr(model, name).optimizer.state_dict()["state"] for model in (mbpo, sac))
        assert all(th.equal(moments[i][key], state[key]) for i, state in expected.items() for key in state)
    assert mbpo._n_updates == sac._n_updates
    assert np.array_equal(mbpo.replay_buffer.actions, sac.replay_buffer.actions)


@pytest.mark.usefixtures("not_accelerated")
@pytest.mark.parametrize(
    "env_id, n_envs, settings",
    [
        ("PointMass-v0", 1, {}),
        ("Line-v0", 1, {}),
        ("PointMass-v0", 2, {}),
        ("PointMass-v0", 1, {"n_steps": 3}),
        ("PointMass-v0", 2, {"n_steps": 3, "train_freq": 4, "gradient_steps": -1}),
        ("PointMass-v0", 1, {"use_sde": True, "sde_sample_freq": 4, "use_sde_at_warmup": True}),
        ("PointMass-v0", 1, {"gradient_steps": 4, "target_update_interval": 3}),
        ("PointMass-v0", 1, {"train_freq": (1, "episode"), "gradient_steps": -1}),
        ("PointMass-v0", 1, {"ent_coef": 0.1}),
    ],
)
def test_with_real_batches_only_it_equals_sac(make_mbpo, make_sac, env_id, n_envs, settings):
    mbpo = make_mbpo(make_vec_env(env_id, n_envs, seed=0), real_ratio=1.0, **settings).learn(200)
    sac = make_sac(make_vec_env(env_id, n_envs, seed=0), **settings).learn(200)
    assert_same_learner(mbpo, sac)
    assert mbpo.dynamics.is_fitted
    assert len(mbpo.model_buffer) > 0


@pytest.mark.usefixtures("not_accelerated")
def test_with_real_batches_only_it_equals_sac_under_vec_normalize(make_mbpo, make_sac):
    mbpo, sac = (
        make(VecNormalize(make_vec_env("PointMass-v0", 2, seed=0)), **own).learn(200)
        for make, own in ((make_mbpo, {"real_ratio": 1.0}), (make_sac, {}))
    )
    assert_same_learner(mbpo, sac)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_accelerated_it_equals_sac_up_to_rounding(make_mbpo, make_sac, precision, tolerance):
    if precision == "bfloat16" and not HAS_BFLOAT16:
        pytest.skip("no such products on this processor")
    # Other actions would make other experience, and rounding grows from there
    settings = {"train_freq": 200, "gradient_steps": 100, "learning_starts": 40}
    mbpo = make_mbpo(real_ratio=1.0, precision=precision, **settings).learn(200)
    sac = make_sac(**settings).learn(200)
    initial = make_sac(**settings)
    assert mbpo._n_updates == 100
    ours, theirs, before = (model.get_parameters()["policy"] for model in (mbpo, sac, initial))
    for name, value in theirs.items():
        change = (value - before[name]).norm()
        assert (ours[name] - value).norm() <= tolerance * change + 1e-6, name


def test_imagined_rows_change_what_is_learned(make_mbpo, make_sac):
    mbpo, sac = make_mbpo().learn(100), make_sac().learn(100)
    assert not th.equal(mbpo.actor.mu.weight, sac.actor.mu.weight)


@pytest.mark.parametrize(
    "train_freq, gradient_steps, n_envs, expected",
    [
        # 40 of 120 environment steps are warm-up
        (1, 1, 1, 80),
        (1, 3, 1, 240),
        (1, -1, 1, 80),
        (1, 0, 1, 0),
        (4, -1, 1, 80),
        (4, 3, 1, 60),
        (4, -1, 2, 80),
        (4, 3, 2, 30),
        ((4, "step"), 0, 2, 0),
        # Episodes of 30 steps end at 60, 90 and 120
        ((1, "episode"), -1, 1, 90),
        ((1, "episode"), 3, 1, 9),
        ((1, "episode"), 0, 1, 0),
    ],
)
def test_gradient_steps_are_the_number_of_updates(make_mbpo, train_freq, gradient_steps, n_envs, expected):
    env = make_vec_env("PointMass-v0", n_envs)
    model = make_mbpo(env, train_freq=train_freq, gradient_steps=gradient_steps).learn(120)
    assert model._n_updates == expected
    assert model.dynamics.is_fitted == (gradient_steps != 0)


def test_as_many_updates_as_transitions_from_the_first_step(make_mbpo):
    model = make_mbpo(make_vec_env("PointMass-v0", 2), learning_starts=0, train_freq=3, gradient_steps=-1).learn(3)
    assert model.logger.name_to_value["train/n_updates"] == 3 * 2


@pytest.mark.parametrize("train_freq", ["4", ("1", "episode"), "non_sense", (1, "close")])
def test_wrong_train_freq_is_an_error(make_mbpo, train_freq):
    with pytest.raises(ValueError):
        make_mbpo(train_freq=train_freq)


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("buffer_size", [1, 20, 2_000])
def test_tiny_data(make_mbpo, n_envs, buffer_size):
    env = make_vec_env("Line-v0", n_envs)
    model = make_mbpo(env, learning_starts=0, buffer_size=buffer_size, model_train_freq=1).learn(36)
    # With room for fewer than 32 transitions there is never enough to fit
    assert model.dynamics.is_fitted == (buffer_size == 2_000)


def test_training_is_deterministic(make_mbpo):
    def run(seed):
        env = make_vec_env("Line-v0", 1, seed=seed)
        model = make_mbpo(env, seed=seed).learn(100)
        rewards, _ = evaluate_policy(model, env, n_eval_episodes=2, return_episode_rewards=True)
        obs = np.linspace(-1, 1, 10, dtype=np.float32).reshape(5, 2)
        imagined = model.model_buffer.contents()
        return model.predict(obs, deterministic=True)[0], rewards, imagined.rewards, model.ep_info_buffer[-1]["r"]

    first, same, other = run(0), run(0), run(1)
    assert np.array_equal(first[0], same[0])
    assert first[1] == same[1]
    assert th.equal(first[2], same[2])
    assert first[3] == same[3]
    assert not np.array_equal(first[0], other[0])
    assert first[1] != other[1]


def test_stochastic_predictions_follow_the_seed(make_mbpo):
    model = make_mbpo().learn(60)
    obs = np.zeros((20, 2), dtype=np.float32)
    predictions = []
    for seed in (3, 3, 4):
        model.set_random_seed(seed)
        predictions.append(model.predict(obs)[0])
    assert np.array_equal(predictions[0], predictions[1])
    assert not np.array_equal(predictions[0], predictions[2])


class BatchNormExtractor(FlattenExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.norm = th.nn.BatchNorm1d(self.features_dim)

    def forward(self, observations):
        return self.norm(super().forward(observations))


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_sde": True}, {"policy_kwargs": {"net_arch": [16], "features_extractor_class": BatchNormExtractor}}],
    ids=["plain", "gsde", "batch norm"],
)
@pytest.mark.parametrize("env_id", ["PointMass-v0", "Line-v0"])
def test_fits_and_rollouts_do_not_change_sac(make_mbpo, env_id, settings):
    model = make_mbpo(env_id, **settings).learn(100)
    model._last_fit_timestep -= 7  # as if 7 steps had gone by

    def everything():
        distribution = model.actor.action_dist
        return [
            *(th.get_rng_state(), th.tensor(np.random.get_state()[1].astype(np.int64)), th.tensor(random.getstate()[1])),
            th.tensor([model.num_timesteps, model._n_updates, model._episode_num, len(model.ep_info_buffer)]),
            th.tensor([model.replay_buffer.pos, model.policy.training]),
            *model.policy.state_dict().values(),
            *([distribution.exploration_mat] if settings.get("use_sde") else []),
        ]

    model.policy.set_training_mode(False)
    before = [value.clone() for value in everything()]
    transitions = real_transitions(model.replay_buffer, "cpu")
    model._fit_dynamics(transitions)
    model._imagine(transitions.observations)
    assert all(th.equal(old, new) for old, new in zip(before, everything(), strict=True))


def test_evaluates_with_and_without_a_vec_env(make_mbpo):
    model = make_mbpo().learn(60)
    returns, lengths = evaluate_policy(model, model.get_env(), n_eval_episodes=3, return_episode_rewards=True)
    assert lengths == [30, 30, 30]
    assert np.isfinite(returns).all()
    obs = model.observation_space.sample()
    assert model.predict(obs)[0].shape == (1,)
    assert model.predict(obs[None])[0].shape == (1, 1)
