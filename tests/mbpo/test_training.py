"""Every option trains and does what it is documented to do."""

from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.sac.policies import SACPolicy

from sb3_mbrl.common.trajectories import initial_rows, real_transitions
from sb3_mbrl.dynamics import AdaptiveRolloutLength
from sb3_mbrl.dynamics.learned_termination import LearnedTermination
from sb3_mbrl.mbpo import MBPO
from sb3_mbrl.mbpo.mixin import MBPOMixin
from sb3_mbrl.tasks.termination_rules import NeverTerminates


def assert_trained(model):
    assert model.dynamics.is_fitted
    assert len(model.model_buffer) > 0
    assert all(th.isfinite(value).all() for value in model.policy.state_dict().values())
    low, high = model.action_space.low, model.action_space.high
    actions = np.stack([model.predict(model.observation_space.sample())[0] for _ in range(20)])
    assert actions.shape[1:] == model.action_space.shape
    assert (actions >= low).all() and (actions <= high).all()


class TestSacOptions:
    @pytest.mark.parametrize("n_envs", [1, 2])
    @pytest.mark.parametrize(
        "noise",
        [NormalActionNoise(np.zeros(1), 0.1 * np.ones(1)), OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.1 * np.ones(1))],
        ids=["normal", "ou"],
    )
    def test_action_noise(self, make_mbpo, n_envs, noise):
        model = make_mbpo(make_vec_env("PointMass-v0", n_envs), action_noise=noise).learn(120)
        assert_trained(model)
        assert isinstance(model.action_noise, VectorizedActionNoise) == (n_envs > 1)

    def test_action_noise_is_not_used_in_imagination(self, make_mbpo):
        # Pushes every real action to the bound, imagined ones stay where the policy puts them
        model = make_mbpo(action_noise=NormalActionNoise(5 * np.ones(1), np.zeros(1)), learning_starts=0).learn(100)
        assert (model.replay_buffer.actions[:100] == 1.0).all()
        assert model.model_buffer.contents().actions.mean() < 0.9

    @pytest.mark.parametrize("n_envs", [1, 2])
    @pytest.mark.parametrize("sde_sample_freq", [-1, 4])
    @pytest.mark.parametrize("use_sde_at_warmup", [False, True])
    def test_gsde(self, make_mbpo, n_envs, sde_sample_freq, use_sde_at_warmup):
        settings = {"use_sde": True, "sde_sample_freq": sde_sample_freq, "use_sde_at_warmup": use_sde_at_warmup}
        model = make_mbpo(make_vec_env("PointMass-v0", n_envs), train_freq=5, **settings).learn(120)
        assert_trained(model)
        actions = model.model_buffer.contents().actions
        assert len(actions.unique()) > len(actions) // 2  # a matrix of noise for each row, not one for all

    def test_several_steps(self, make_mbpo):
        model = make_mbpo(n_steps=3).learn(120)
        assert isinstance(model.replay_buffer, NStepReplayBuffer)
        assert_trained(model)
        rows = real_transitions(model.replay_buffer, "cpu")
        assert th.allclose(rows.rewards, 1 - rows.next_observations[:, 0].abs(), atol=1e-5)  # one step each
        with model._mixed_batches(1):
            batch = model.replay_buffer.sample(40)
        assert batch.discounts.shape == (40, 1)
        assert (batch.discounts[10:] == 0.99).all()
        assert batch.discounts[:10].min() == pytest.approx(0.99**3)

    @pytest.mark.parametrize(
        "schedule", [lambda left: 1e-3 * left, LinearSchedule(1e-3, 0.0, 1.0)], ids=["function", "linear"]
    )
    def test_learning_rate_schedules(self, make_mbpo, schedule):
        model = make_mbpo(learning_rate=schedule).learn(100)
        assert model.actor.optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)
        assert model.logger.name_to_value["train/learning_rate"] == pytest.approx(0.0, abs=1e-9)
        # The model's own learning rate is its own business
        assert all(group["lr"] == 1e-3 for group in model.dynamics.optimizer.param_groups)

    @pytest.mark.parametrize("settings", [{"ent_coef": 0.01}, {"ent_coef": "auto_0.1"}, {"target_entropy": -3.0}], ids=str)
    def test_entropy(self, make_mbpo, settings):
        model = make_mbpo(**settings).learn(100)
        assert_trained(model)
        assert model.target_entropy == settings.get("target_entropy", -1.0)
        if settings.get("ent_coef") == 0.01:
            assert model.log_ent_coef is None and model.ent_coef_tensor == pytest.approx(0.01)
        if settings.get("ent_coef") == "auto_0.1":
            assert model.log_ent_coef.exp().item() == pytest.approx(0.1, rel=0.1)

    @pytest.mark.parametrize("n_critics", [1, 3])
    def test_number_of_critics(self, make_mbpo, n_critics):
        model = make_mbpo(policy_kwargs={"net_arch": {"pi": [8], "qf": [16]}, "n_critics": n_critics}).learn(60)
        assert len(model.critic.q_networks) == n_critics

    def test_policy_class(self, tiny):
        class MyPolicy(SACPolicy):
            pass

        assert_trained(MBPO(MyPolicy, "PointMass-v0", **tiny).learn(60))

    def test_replay_buffer_class(self, make_mbpo):
        class CountingBuffer(ReplayBuffer):
            n_added = 0

            def add(self, *args, **kwargs):
                self.n_added += 1
                super().add(*args, **kwargs)

        model = make_mbpo(replay_buffer_class=CountingBuffer).learn(60)
        assert model.replay_buffer.n_added == 60
        assert_trained(model)

    def test_replay_buffer_that_returns_more(self, tiny):
        class Weighted(NamedTuple):
            observations: th.Tensor
            actions: th.Tensor
            next_observations: th.Tensor
            dones: th.Tensor
            rewards: th.Tensor
            discounts: th.Tensor | None
            weights: th.Tensor

        class WeightedBuffer(ReplayBuffer):
            def _get_samples(self, batch_inds, env=None):
                return Weighted(*super()._get_samples(batch_inds, env), weights=th.ones(len(batch_inds)))

        class WeightedSAC(SAC):
            seen = 0

            def train(self, gradient_steps, batch_size=64):
                super().train(gradient_steps, batch_size)
                self.seen += len(self.replay_buffer.sample(batch_size).weights)

        class MyMBPO(MBPOMixin, WeightedSAC):
            pass

        # At verbose=1 updates are timed before the first one
        model = MyMBPO("MlpPolicy", "PointMass-v0", replay_buffer_class=WeightedBuffer, verbose=1, **tiny).learn(60)
        assert model.seen == 20 * 8  # real rows of 32

    def test_full_replay_buffer(self, make_mbpo):
        model = make_mbpo(buffer_size=50).learn(170)
        assert model.replay_buffer.full
        assert_trained(model)


class TestSpaces:
    @pytest.mark.parametrize(
        "space",
        [
            {"low": -0.5, "high": 3.0},
            {"action_shape": (2, 3)},
            {"dtype": np.float64},
            {"dtype": np.float64, "low": -7.0, "high": -2.0, "action_shape": (3,)},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("n_steps", [1, 3])
    def test_actions_and_observations(self, make_mbpo, space, n_steps):
        point_mass = type(gym.make("PointMass-v0").unwrapped)
        env = gym.wrappers.TimeLimit(point_mass(**space), 30)
        model = make_mbpo(env, n_steps=n_steps).learn(120)
        assert_trained(model)
        # Buffers and model hold actions in [-1, 1]; the push is half of the next velocity's change
        rows = real_transitions(model.replay_buffer, "cpu")
        assert rows.actions.abs().max() <= 1.0
        change = rows.next_observations[:, 1] - 0.9 * rows.observations[:, 1]
        assert th.allclose(change, 0.2 * rows.actions[:, 0], atol=1e-5)

    def test_user_functions_see_the_actions_of_the_environment(self, make_mbpo):
        seen = []

        def reward(obs, action, next_obs):
            seen.append(action)
            return action[:, 0]

        point_mass = type(gym.make("PointMass-v0").unwrapped)
        make_mbpo(gym.wrappers.TimeLimit(point_mass(low=2.0, high=6.0), 30), reward_fn=reward).learn(100)
        actions = th.cat(seen)
        assert actions.min() >= 2.0 and actions.max() <= 6.0 and actions.max() - actions.min() > 1.0

    def test_observations_with_bounds(self, make_mbpo):
        class Bounded(gym.ObservationWrapper):
            def __init__(self, env):
                super().__init__(env)
                self.observation_space = spaces.Box(np.array([-np.inf, -5.0], np.float32), np.array([np.inf, 5.0], np.float32))

            def observation(self, obs):
                return obs

        assert_trained(make_mbpo(Bounded(gym.make("PointMass-v0"))).learn(60))


def watching(rule, watched):
    """The same rule, but it records the number of transitions that it gets and their errors."""

    class Watched(AdaptiveRolloutLength):
        def errors(self, dynamics, trajectories, generator=None, scale=None):
            errors = super().errors(dynamics, trajectories, generator, scale)
            watched.append((sum(map(len, trajectories)), errors))
            return errors

    return Watched(rule.max_length, rule.tolerance)


class TestModelOptions:
    @pytest.mark.parametrize("real_ratio, n_real", [(0.0, 0), (0.25, 8), (0.05, 1), (1.0, 32)])
    def test_real_ratio(self, make_mbpo, real_ratio, n_real):
        model = make_mbpo(real_ratio=real_ratio).learn(60)
        real, asked = model.replay_buffer.sample, []
        model.replay_buffer.sample = lambda n, env=None: (asked.append(n), real(n, env=env))[1]
        with model._mixed_batches(1):
            batch = model.replay_buffer.sample(32)
        assert sum(asked) == n_real
        assert all(len(values) == 32 for values in batch[:5])

    def test_all_real_before_the_first_fit(self, make_mbpo):
        model = make_mbpo(learning_starts=5, real_ratio=0.0).learn(20)
        assert model._n_updates == 15
        assert not model.dynamics.is_fitted

    def test_branches_from_initial_states_as_long_as_an_episode(self, make_mbpo):
        model = make_mbpo(branch_from="initial", rollout_schedule=30).learn(150)
        rows = real_transitions(model.replay_buffer, "cpu")
        initial = initial_rows(model.replay_buffer)
        assert initial.tolist() == [0, 30, 60, 90, 120]
        starts = model._start_states(rows.observations, 200)
        assert {tuple(row) for row in starts.tolist()} == {tuple(row) for row in rows.observations[initial].tolist()}
        assert model.logger.name_to_value["imagination/rollout_length"] == 30
        assert model.logger.name_to_value["imagination/n_transitions"] == 10 * 50 * 30

    def test_branches_from_all_states(self, make_mbpo):
        model = make_mbpo(make_vec_env("PointMass-v0", 2)).learn(60)
        stored = {tuple(row) for row in model.replay_buffer.observations[:30].reshape(-1, 2).tolist()}
        drawn = {
            tuple(row)
            for row in model._start_states(real_transitions(model.replay_buffer, "cpu").observations, 2_000).tolist()
        }
        assert drawn == stored
        assert len(drawn) == 60

    def test_deterministic_rollouts_take_the_means(self, make_mbpo):
        # One elite: the mean is a function of the row
        alone = {"ensemble_size": 3, "n_elites": 1, "net_arch": [16, 16]}
        for deterministic in (False, True):
            model = make_mbpo(deterministic_rollout=deterministic, dynamics_kwargs=alone).learn(60)
            rows = model.model_buffer.contents()
            expected = model.dynamics.step(rows.observations, rows.actions, deterministic=True)
            assert th.allclose(rows.next_observations, expected.next_obs, atol=1e-5) == deterministic

    def test_schedule_lengthens_rollouts_and_the_buffer(self, make_mbpo):
        lengths, capacities = [], []
        model = make_mbpo(rollout_schedule=(60, 160, 1, 3), model_retain_steps=100)

        def watch(*_):
            lengths.append(model.logger.name_to_value.get("imagination/rollout_length", lengths[-1] if lengths else 0))
            capacities.append(model.model_buffer.capacity)
            return True

        model.learn(200, callback=watch)
        # Refits at 41, 91, 141 and 191
        assert [lengths[step] for step in (42, 92, 142, 192)] == [1, 1, 2, 3]
        assert [capacities[step] for step in (42, 142, 192)] == [1_000, 2_000, 3_000]
        # Of 500 + 500 + 1000 + 1500 imagined rows, those of the last 100 steps
        assert len(model.model_buffer) == 3_000

    def test_adaptive_length_follows_the_error_on_new_transitions(self, make_mbpo):
        rule, watched = AdaptiveRolloutLength(4, tolerance=1.0), []
        lengths = []
        model = make_mbpo(rollout_schedule=watching(rule, watched), fit_kwargs={"max_epochs": 100})
        model.learn(
            200, callback=lambda *_: lengths.append(model.logger.name_to_value.get("imagination/rollout_length")) or True
        )
        seen = [(n, rule.choose(errors)) for n, errors in watched]
        # Refits at 41, 91, 141 and 191; before the first there is nothing to measure
        assert [n for n, _ in seen] == [50, 50, 50]
        assert [lengths[step] for step in (42, 92, 142, 192)] == [1, *(length for _, length in seen)]
        assert max(length for _, length in seen) > 1
        assert model.model_buffer.capacity == 10 * 1_000 * seen[-1][1]

    def test_adaptive_length_of_many_environments_follows_the_error_on_new_transitions(self, make_mbpo):
        watched = []
        schedule = watching(AdaptiveRolloutLength(15, tolerance=1e6), watched)
        make_mbpo(make_vec_env("PointMass-v0", 10), rollout_schedule=schedule).learn(200)
        # Five steps of each environment since the last fit
        assert [(n, len(errors)) for n, errors in watched] == [(50, 5)] * 3

    def test_old_imagined_transitions_are_dropped(self, make_mbpo):
        model = make_mbpo(model_retain_steps=60).learn(240)
        assert len(model.model_buffer) == model.model_buffer.capacity == 10 * 60

    @pytest.mark.parametrize("per_step, n_steps", [(None, 3), (2.0, 3), (0.04, 2)])
    def test_budget_of_a_fit(self, make_mbpo, per_step, n_steps):
        # An epoch, of three at most, is one gradient step; 41 environment steps come before the first fit, 50 before the next
        model = make_mbpo(model_updates_per_step=per_step)
        model.learn(60)
        assert model.logger.name_to_value["dynamics/n_gradient_steps"] == n_steps
        model.learn(55, reset_num_timesteps=False)
        assert model.logger.name_to_value["dynamics/n_gradient_steps"] == n_steps

    def test_learned_or_given_reward(self, make_mbpo):
        def reward(obs, action, next_obs):
            return 7.0 + 0.0 * next_obs[:, 0]

        assert (make_mbpo(reward_fn=reward).learn(60).model_buffer.contents().rewards == 7.0).all()
        assert make_mbpo().learn(60).model_buffer.contents().rewards.std() > 0

    @pytest.mark.parametrize(
        "env_id, termination_fn, kind",
        [
            ("PointMass-v0", None, NeverTerminates),
            ("PointMass-v0", "auto", LearnedTermination),
            ("Line-v0", "auto", LearnedTermination),
            ("Line-v0", "learned", LearnedTermination),
        ],
    )
    def test_termination(self, make_mbpo, env_id, termination_fn, kind):
        model = make_mbpo(env_id, termination_fn=termination_fn).learn(120)
        assert isinstance(model.dynamics.termination_fn, kind)
        assert_trained(model)

    def test_known_termination(self, make_mbpo):
        pytest.importorskip("mujoco")
        model = make_mbpo("InvertedPendulum-v5").learn(120, log_interval=1_000)
        assert not isinstance(model.dynamics.termination_fn, LearnedTermination)
        values = model.logger.name_to_value
        assert values["dynamics/termination_precision"] == values["dynamics/termination_recall"] == 1.0
        assert_trained(model)

    def test_user_termination(self, make_mbpo):
        model = make_mbpo("Line-v0", termination_fn=lambda obs, action, next_obs: next_obs[:, 0] > -np.inf)
        with pytest.warns(UserWarning, match="termination_fn disagrees with"):
            model.learn(60)
        assert model.model_buffer.contents().terminated.all()

    @pytest.mark.parametrize(
        "dynamics_kwargs",
        [
            {"probabilistic": False},
            {"learn_logvar_bounds": False},
            {"normalize_targets": False},
            {"ensemble_size": 1, "n_elites": 1},
            {"activation": "relu", "net_arch": [8], "weight_decay": 0.0, "learning_rate": 1e-2},
        ],
        ids=str,
    )
    def test_dynamics_kwargs(self, make_mbpo, tiny, dynamics_kwargs):
        model = make_mbpo(dynamics_kwargs={**tiny["dynamics_kwargs"], **dynamics_kwargs}).learn(60)
        assert all(
            getattr(model.dynamics, name) == value or name in ("net_arch", "weight_decay")
            for name, value in dynamics_kwargs.items()
        )
        assert_trained(model)

    @pytest.mark.parametrize(
        "fit_kwargs", [{"bootstrap": False}, {"holdout_ratio": 0.5}, {"batch_size": 8}, {"patience": 0}], ids=str
    )
    def test_fit_kwargs(self, make_mbpo, fit_kwargs):
        model = make_mbpo(fit_kwargs={"max_epochs": 4, **fit_kwargs}).learn(60)
        assert_trained(model)
        if "holdout_ratio" in fit_kwargs:
            assert model.logger.name_to_value["dynamics/n_holdout"] == 20
        if "batch_size" in fit_kwargs:
            assert model.logger.name_to_value["dynamics/n_gradient_steps"] == 4 * 5

    def test_model_train_freq(self, make_mbpo):
        fits = []
        model = make_mbpo(make_vec_env("PointMass-v0", 3), model_train_freq=20, train_freq=2)
        model.learn(120, callback=lambda *_: fits.append(model._last_fit_timestep) or True)
        # train() comes every 6 steps; a refit at the first one that is 20 or more after the last
        assert sorted(set(fits) - {None}) == [42, 66, 90, 114]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_learns_to_stand_still(seed):
    env = make_vec_env("PointMass-v0", seed=seed)
    model = MBPO(
        "MlpPolicy",
        env,
        learning_starts=100,
        learning_rate=1e-3,
        gradient_steps=10,
        gamma=0.95,
        policy_kwargs={"net_arch": [32, 32]},
        model_train_freq=50,
        rollouts_per_step=50,
        rollout_schedule=2,
        dynamics_kwargs={"ensemble_size": 3, "n_elites": 2, "net_arch": [32, 32]},
        seed=seed,
        device="cpu",
    )
    # Random actions return -1 on average, a tuned PD controller 28.5; of six seeds five end above 27, one at 20
    model.learn(450)
    assert evaluate_policy(model, env, n_eval_episodes=20)[0] > 10.0
