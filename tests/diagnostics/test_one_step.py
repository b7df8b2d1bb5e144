import numpy as np
import pytest
import torch as th

from sb3_mbrl.common.types import Transitions
from sb3_mbrl.diagnostics.one_step import one_step_error
from tests.diagnostics.linear import LinearModel, linear_world


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


def test_an_overconfident_model_has_a_low_coverage():
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


def test_a_dimension_that_never_changes_is_not_judged():
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


def test_the_uncertainty_about_a_known_reward_is_not_judged():
    model = LinearModel(noise=0.1)
    model.reward_fn = lambda obs, action, next_obs: obs.sum(dim=1)
    assert one_step_error(model, linear_world(100)).coverage_90.isnan().tolist() == [False, False, True]


def test_a_prediction_that_is_not_finite_is_infinitely_wrong():
    world = linear_world(100)
    assert one_step_error(LinearModel(bias=np.nan), world).rmse[:2].isinf().all()


def test_missed_and_false_terminations_are_counted():
    world = linear_world(1_000, limit=1.0)
    assert one_step_error(LinearModel(limit=1.5), world).termination_recall < 1
    assert one_step_error(LinearModel(limit=0.5), world).termination_precision < 1


def test_no_transitions_are_refused():
    with pytest.raises(ValueError, match="no transitions"):
        one_step_error(LinearModel(), linear_world(10)[slice(0, 0)])
