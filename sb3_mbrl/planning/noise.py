"""The noise of planners."""

from collections.abc import Sequence

import torch as th

from sb3_mbrl.common.random import Generators, rand, randn


def truncated_normal(shape: Sequence[int], generator: Generators, device: th.device | str) -> th.Tensor:
    """
    :param shape: shape of the result
    :param generator: source of the noise
    :param device: where the noise is made
    :return: samples of the standard normal distribution truncated to [-2, 2]
    """
    inside = th.erf(th.tensor(2**0.5, device=device))  # the probability of [-2, 2]
    uniform = (2 * rand(shape, generator, device) - 1) * inside
    return 2**0.5 * th.erfinv(uniform)


def colored_noise(shape: Sequence[int], beta: float, generator: Generators, device: th.device | str) -> th.Tensor:
    """
    Gaussian noise whose power spectrum over time is proportional to 1 / f^beta (Timmer & Koenig 1995), scaled as in the
    package ``colorednoise`` 2.2, which iCEM's code calls. That package divides by the standard deviation of the waves, leaving
    out the mean over the plan, and half the variance of the fastest wave if the horizon is even. The standard deviation of the
    noise is therefore larger than 1: for a horizon of 30 it is 1.03 (beta near 0) to 1.22 (large beta).

    :param shape: (B, N, H, A), H steps in time
    :param beta: exponent: 0 is white noise of unit variance, 1 pink, 2 brown
    :param generator: source of the noise
    :param device: where the noise is made
    :return: noise of this shape
    """
    n_envs, n, horizon, action_dim = shape
    if horizon == 1 or beta == 0:
        return randn(shape, generator, device)
    frequency = th.fft.rfftfreq(horizon, device=device)
    frequency[0] = frequency[1]  # the mean over the plan has the power of the slowest wave
    amplitude = (frequency / frequency[1]) ** (-beta / 2)  # at most 1, so that nothing overflows for a large beta
    real, imaginary = randn((n_envs, n, 2, len(amplitude), action_dim), generator, device).unbind(dim=2)
    # The mean, and the fastest wave of an even horizon, have no phase: all their power is in the real part
    phaseless = th.zeros_like(amplitude, dtype=th.bool)
    phaseless[0] = True
    if horizon % 2 == 0:
        phaseless[-1] = True
    amplitude, phaseless = amplitude.unsqueeze(1), phaseless.unsqueeze(1)
    real = real * amplitude * th.where(phaseless, 2**0.5, 1.0)
    imaginary = imaginary * amplitude * (~phaseless)
    noise = th.fft.irfft(th.complex(real, imaginary), n=horizon, dim=2)
    # A wave with a phase represents two frequencies (positive and negative), and has a real and an imaginary part
    variance = amplitude**2 * th.where(phaseless, 1.0, 4.0)
    return noise * horizon / variance[1:].sum().sqrt()
