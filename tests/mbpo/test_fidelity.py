"""Rows of the fidelity table in docs/modules/mbpo.md that no other test pins."""

import inspect

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes

from sb3_mbrl import MBPO
from sb3_mbrl.common.trajectories import real_transitions
from sb3_mbrl.dynamics import ProbabilisticEnsemble


@pytest.fixture
def fits(monkeypatch):
    """Records the reports of all fits and their transitions."""
    seen = []
    fit = ProbabilisticEnsemble.fit

    def spy(self, transitions, *args, **kwargs):
        report = fit(self, transitions, *args, **kwargs)
        seen.append((transitions, report))
        return report

    monkeypatch.setattr(ProbabilisticEnsemble, "fit", spy)
    return seen


def test_defaults_are_the_papers():
    defaults = {name: parameter.default for name, parameter in inspect.signature(MBPO).parameters.items()}
    paper = {"model_train_freq": 250, "rollouts_per_step": 400, "model_retain_steps": 1_000, "real_ratio": 0.05}
    assert {name: defaults[name] for name in paper} == paper
    assert (defaults["gradient_steps"], defaults["rollout_schedule"], defaults["deterministic_rollout"]) == (20, 1, False)
    model = MBPO("MlpPolicy", "Pendulum-v1").dynamics
    assert (model.ensemble_size, model.n_elites, model.net_arch, model.activation) == (7, 5, (200,) * 4, "silu")


def test_the_running_episode_is_visible_to_the_model(make_mbpo, fits):
    model = make_mbpo(learning_starts=35)
    model.learn(36)  # the second episode ends at 60
    (transitions, report), *_ = fits
    assert len(transitions) == report.n_train + report.n_holdout == 36


def test_a_fit_takes_no_more_gradient_steps_than_its_budget(make_mbpo, fits):
    make_mbpo(fit_kwargs={"batch_size": 8}, model_updates_per_step=0.5).learn(150)
    first, *refits = [report.n_gradient_steps for _, report in fits]
    assert first <= np.ceil(0.5 * 41)
    assert refits and all(steps <= 25 for steps in refits)


def test_without_a_budget_a_fit_runs_to_its_end(make_mbpo, fits):
    make_mbpo(fit_kwargs={}, model_updates_per_step=None).learn(42)
    assert fits[0][1].n_gradient_steps > 100


def test_refits_continue_if_the_buffer_is_smaller_than_the_warm_up(make_mbpo, fits):
    make_mbpo(buffer_size=35).learn(200)
    assert len(fits) == 4


def test_a_loaded_model_is_not_refitted_on_a_handful_of_transitions(make_mbpo, fits, tmp_path):
    model = make_mbpo(learning_starts=200)
    model.learn(210)
    model.save(tmp_path / "model")
    loaded = MBPO.load(tmp_path / "model", env=model.get_env())
    del fits[:]
    loaded.learn(60, reset_num_timesteps=False)
    assert not fits and len(loaded.model_buffer) > 0
    loaded.learn(150, reset_num_timesteps=False)
    assert len(fits) >= 1 and len(fits[0][0]) >= 100


def test_a_run_stopped_by_a_callback_stores_no_false_transition(make_mbpo):
    model = make_mbpo()
    model.learn(500, callback=StopTrainingOnMaxEpisodes(2))
    model.learn(20, reset_num_timesteps=False)
    rows = real_transitions(model.replay_buffer, "cpu")
    jump = (rows.next_observations[:, 0] - rows.observations[:, 0] - 0.5 * rows.next_observations[:, 1]).abs()
    assert jump.max() < 1e-5


@pytest.mark.usefixtures("not_accelerated")  # there critics are called
def test_an_interrupt_in_the_actor_loss_leaves_the_critic_trainable(make_mbpo, monkeypatch):
    model = make_mbpo().learn(45)
    forward = type(model.critic).forward

    def interrupted(self, obs, actions):
        if actions.requires_grad:
            raise KeyboardInterrupt
        return forward(self, obs, actions)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(model.critic), "forward", interrupted)
        model.learn(5, reset_num_timesteps=False)
    assert all(parameter.requires_grad for parameter in model.critic.parameters())
    model.learn(5, reset_num_timesteps=False)


def test_auto_termination_follows_the_environment():
    model = MBPO("MlpPolicy", "InvertedPendulum-v5", dynamics_kwargs={"net_arch": [8]})
    hopper = MBPO("MlpPolicy", "Hopper-v5", dynamics_kwargs={"net_arch": [8]})
    tilted = th.tensor([[0.9, 0.3, *[0.0] * 9]])
    action = th.zeros(1, 3)
    assert hopper.dynamics.termination_fn(tilted, action, tilted).item()
    hopper.set_env(gym.make("Hopper-v5", healthy_angle_range=(-0.5, 0.5)))
    assert not hopper.dynamics.termination_fn(tilted, action, tilted).item()
    model.set_env(gym.make("InvertedPendulum-v5"))
    fallen = th.tensor([[0.0, 0.3, 0.0, 0.0]])
    assert model.dynamics.termination_fn(fallen, th.zeros(1, 1), fallen).item()


def test_a_termination_function_that_predicts_nothing_is_refused(make_mbpo):
    def never(obs, action, next_obs):
        return th.zeros(len(obs), dtype=th.bool)

    with pytest.raises(ValueError, match="predicts none of them"):
        make_mbpo("Line-v0", learning_starts=300, termination_fn=never).learn(400)


def test_a_function_of_the_user_is_kept_when_the_environment_is_set():
    def never_but_far(obs, action, next_obs):
        return next_obs[:, 0].abs() > 0.4

    env = gym.make("InvertedPendulum-v5")
    model = MBPO("MlpPolicy", env, termination_fn=never_but_far, dynamics_kwargs={"net_arch": [8]})
    model.set_env(gym.make("InvertedPendulum-v5"))
    assert model._auto_termination is None
    assert model.dynamics.termination_fn is never_but_far
