import pytest
import torch as th

from tests.dynamics.models import DISCRETE, OBS_DIM, discrete_transitions, ensemble, seeded


@pytest.fixture(scope="module")
def fitted_to_discrete():
    model = ensemble(action_space=DISCRETE)
    model.fit(discrete_transitions(), seeded(), batch_size=64, max_epochs=60)
    return model


@pytest.mark.parametrize("members", ["random", "expectation"])
def test_discrete_actions_are_one_hot_and_their_effect_is_learned(fitted_to_discrete, members):
    assert fitted_to_discrete.action_dim == 3
    data = discrete_transitions(100, seed=1)
    step = fitted_to_discrete.step(data.observations, data.actions, seeded(), members, deterministic=True)
    change = (data.next_observations - data.observations, step.next_obs - data.observations)
    th.testing.assert_close(*change, atol=0.5, rtol=0)
    assert step.reward.round().equal(data.rewards)


def test_discrete_actions_are_not_scaled():
    seen = []

    def reward(obs, action, next_obs):
        seen.append(action)
        return obs[:, 0]

    model, actions = ensemble(action_space=DISCRETE, reward_fn=reward), th.eye(3)
    seen.clear()
    assert model.unscale_action(actions).equal(actions)
    assert model.scale_action(actions).equal(actions)
    model.step(th.zeros(3, OBS_DIM), actions, seeded())
    assert seen[0].equal(actions)


def test_discrete_actions_that_are_not_one_hot_raise():
    with pytest.raises(RuntimeError):
        ensemble(action_space=DISCRETE).step(th.zeros(3, OBS_DIM), th.tensor([[2.0], [3.0], [4.0]]), seeded())
