import pytest
import torch as th

from sb3_mbrl.dynamics.ensemble import ProbabilisticEnsemble
from tests.dynamics.models import OBS_DIM, ensemble, inputs, seeded, shaken


def test_scaling_an_action_is_undone_by_unscaling():
    model = ensemble()
    in_env = th.tensor([[-2.0, 0.0], [6.0, 1.0], [2.0, 0.5]])
    scaled = th.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]])
    th.testing.assert_close(model.scale_action(in_env), scaled)
    th.testing.assert_close(model.unscale_action(scaled), in_env)


def test_user_functions_receive_raw_observations_and_actions_in_the_environments_scale():
    model = shaken(
        reward_fn=lambda obs, action, next_obs: action[:, 0] + 100 * obs[:, 0] + 1000 * next_obs[:, 0],
        termination_fn=lambda obs, action, next_obs: action[:, 0] > 5.9,
    )
    obs, action = th.ones(3, OBS_DIM), th.tensor([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    step = model.step(obs, action, seeded())
    th.testing.assert_close(step.reward, th.tensor([-2.0, 2.0, 6.0]) + 100 + 1000 * step.next_obs[:, 0])
    assert step.terminated.tolist() == [False, False, True]


def test_a_reward_function_lets_gradients_through():
    model = shaken(reward_fn=lambda obs, action, next_obs: (action**2).sum(1) + next_obs.sum(1))
    obs, action = (t.requires_grad_() for t in inputs())
    model.step(obs, action, seeded()).reward.sum().backward()
    assert (action.grad != 0).all() and (obs.grad != 0).all()


@pytest.mark.parametrize(
    "returned",
    [th.zeros(5, 1), th.zeros(5), th.zeros(5, 1, dtype=th.bool), th.zeros((), dtype=th.bool), th.zeros(5, dtype=th.int)],
)
def test_a_termination_function_that_does_not_give_one_bool_a_row_is_refused(returned):
    model = shaken(termination_fn=lambda obs, *_: returned if len(obs) == 5 else obs[:, 0] > 0)  # right in its trial
    with pytest.raises(ValueError, match=r"termination_fn must return a bool tensor of shape \(5,\)"):
        model.step(*inputs(), seeded())


@pytest.mark.parametrize("returned", [th.zeros(5, 1), th.zeros(()), th.zeros(1)])
def test_a_reward_function_that_does_not_give_one_number_a_row_is_refused(returned):
    model = shaken(reward_fn=lambda obs, *_: returned if len(obs) == 5 else obs[:, 0])
    with pytest.raises(ValueError, match=r"reward_fn must return a float tensor of shape \(5,\)"):
        model.step(*inputs(), seeded())


def test_functions_are_tried_when_they_are_passed_and_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"reward_fn must return.* got numpy\.ndarray"):
        ensemble(reward_fn=lambda obs, action, next_obs: obs[:, 0].numpy())
    shaken(reward_fn=lambda obs, action, next_obs: obs[:, 0]).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"reward_fn must return a float tensor of shape \(2,\)"):
        ProbabilisticEnsemble.load(tmp_path / "model", reward_fn=lambda obs, action, next_obs: obs)


def test_a_prediction_that_is_not_finite_ends_the_task():
    obs, action = inputs()
    obs[2, 0] = float("nan")
    assert shaken().step(obs, action, seeded()).terminated.tolist() == [False, False, True, False, False]
