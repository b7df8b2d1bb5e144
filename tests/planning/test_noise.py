"""The noise of planners has the documented distribution."""

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_mbrl.planning import noise
from sb3_mbrl.planning.noise import colored_noise, truncated_normal

BETAS = [0.0, 0.25, 1.0, 2.0, 3.5]


def seeded(seed=0):
    return th.Generator().manual_seed(seed)


# ---------------------------------------------------------------- truncated_normal


def test_a_truncated_normal_stays_within_two_and_has_the_moments_of_one():
    sample = truncated_normal((200_000,), seeded(), "cpu")
    assert sample.abs().max() <= 2
    assert sample.abs().max() > 1.999
    assert sample.mean().item() == pytest.approx(0, abs=0.01)
    assert sample.std().item() == pytest.approx(0.8796, abs=0.005)
    # 68.27 of the 95.45 percent lie within one
    assert (sample.abs() < 1).float().mean().item() == pytest.approx(0.7152, abs=0.005)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_extreme_uniform_numbers_stay_within_the_bounds(monkeypatch, uniform):
    monkeypatch.setattr(noise, "rand", lambda shape, generator, device: th.full(shape, uniform))
    assert 1.999 < truncated_normal((1,), None, "cpu").abs().item() <= 2


# ---------------------------------------------------------------- colored_noise


def periodogram(sample):
    """Mean power at each frequency of (B, N, H, A)."""
    return (th.fft.rfft(sample, dim=2).abs() ** 2).mean(dim=(0, 1, 3)) / sample.shape[2]


# Standard deviations of 40 000 samples of colorednoise 2.2.0, by horizon, for each beta
PUBLISHED_STD = {
    2: {0.25: 1.9993, 1.0: 2.0002, 2.0: 2.0001, 3.5: 2.0072},
    3: {0.25: 1.2207, 1.0: 1.2197, 2.0: 1.2252, 3.5: 1.2240},
    12: {0.25: 1.0766, 1.0: 1.1109, 2.0: 1.1577, 3.5: 1.2021},
    15: {0.25: 1.0445, 1.0: 1.0894, 2.0: 1.1545, 3.5: 1.2052},
    30: {0.25: 1.0348, 1.0: 1.0742, 2.0: 1.1494, 3.5: 1.2010},
}


@pytest.mark.parametrize("horizon", PUBLISHED_STD)
@pytest.mark.parametrize("beta", [0.25, 1.0, 2.0, 3.5])
def test_every_step_has_mean_zero_and_the_standard_deviation_of_the_published_noise(beta, horizon):
    sample = colored_noise((2, 5000, horizon, 3), beta, seeded(), "cpu")
    expected = th.full((horizon,), PUBLISHED_STD[horizon][beta])
    th.testing.assert_close(sample.mean(dim=(0, 1, 3)), th.zeros(horizon), atol=0.05, rtol=0)
    th.testing.assert_close(sample.std(dim=(0, 1, 3)), expected, atol=0, rtol=0.025)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("horizon", [64, 65])
def test_power_falls_with_frequency_to_the_beta(beta, horizon):
    power = periodogram(colored_noise((1, 1000, horizon, 3), beta, seeded(), "cpu"))
    frequency = th.fft.rfftfreq(horizon)
    slope, _ = np.polyfit(frequency[1:].log(), power[1:].log(), 1)
    assert slope == pytest.approx(-beta, abs=0.05)
    if beta > 0:
        assert power[0].item() == pytest.approx(power[1].item(), rel=0.2)  # the mean, as the slowest wave


@pytest.mark.parametrize("beta", [1.0, 2.0, 3.5])
def test_dimensions_sequences_and_environments_are_independent(beta):
    sample = colored_noise((2, 4000, 8, 2), beta, seeded(), "cpu")
    first = sample[0, :, :, 0]
    for other in (sample[0, :, :, 1], sample[1, :, :, 0], first.roll(1, dims=0)):
        assert (first * other).mean().abs() < 0.05
    assert (first[:, :-1] * first[:, 1:]).mean() > 0.3  # but time is not


@pytest.mark.parametrize(("horizon", "beta"), [(7, 0.0), (1, 2.0)])
def test_the_noise_is_white_for_beta_0_and_for_one_step(horizon, beta):
    white = th.randn(2, 5, horizon, 3, generator=seeded())
    assert colored_noise((2, 5, horizon, 3), beta, seeded(), "cpu").equal(white)


def test_a_beta_close_to_zero_is_nearly_white():
    power = periodogram(colored_noise((1, 4000, 12, 3), 1e-6, seeded(), "cpu"))
    # The published scale leaves out the mean and half of the fastest wave, so that 10.5 of 12 twelfths of the variance count
    th.testing.assert_close(power, th.full((7,), 12 / 10.5), atol=0.06, rtol=0)


@pytest.mark.parametrize("horizon", [2, 7, 30, 1000])
def test_the_largest_beta_is_one_slow_wave(horizon):
    sample = colored_noise((1, 2000, horizon, 1), 10.0, seeded(), "cpu")
    assert sample.isfinite().all()
    power = periodogram(sample)
    assert power[:2].sum() / power.sum() > 0.99


# ---------------------------------------------------------------- both


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 3)),
    beta=st.sampled_from([None, *BETAS]),
)
def test_each_environment_draws_from_its_own_generator(shape, beta):
    def draw(shape, generator):
        if beta is None:
            return truncated_normal(shape, generator, "cpu")
        return colored_noise(shape, beta, generator, "cpu")

    before = th.get_rng_state()
    sample = draw(shape, [seeded(env) for env in range(shape[0])])
    assert sample.shape == shape and sample.dtype == th.float32 and sample.isfinite().all()
    for env in range(shape[0]):
        # An FFT rounds differently in batches of other sizes
        th.testing.assert_close(sample[env : env + 1], draw((1, *shape[1:]), seeded(env)), rtol=0, atol=2e-6)
    assert not sample.equal(draw(shape, [seeded(50 + env) for env in range(shape[0])]))
    assert th.get_rng_state().equal(before)
