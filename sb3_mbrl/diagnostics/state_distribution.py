"""The states that a model imagines, compared with the real ones."""

import math
from dataclasses import dataclass

import numpy as np
import torch as th

from sb3_mbrl.diagnostics.statistics import kolmogorov_smirnov, median, nan_where_still, worst


@dataclass(frozen=True)
class StateDistribution:
    """
    Imagined states against real ones, per dimension of the observation, (O,). Shifts are in units of the real standard
    deviation; they and ``ks`` are NaN for a dimension that is constant in the real states.

    :param mean_shift: imagined mean minus real mean
    :param std_shift: imagined standard deviation minus the real one
    :param ks: two-sample Kolmogorov-Smirnov statistic, the largest distance of the two cumulative distributions, in [0, 1]
    :param outside: share of imagined values outside the observed range
    :param outside_any: share of imagined states outside the observed range in any dimension
    :param real: real states, (N, O)
    :param imagined: imagined states, (M, O)
    """

    mean_shift: th.Tensor
    std_shift: th.Tensor
    ks: th.Tensor
    outside: th.Tensor
    outside_any: float
    real: th.Tensor
    imagined: th.Tensor

    def summary(self) -> dict[str, float]:
        """The numbers to watch."""
        return {
            "states_mean_shift_worst": worst(self.mean_shift.abs()),
            "states_std_shift_worst": worst(self.std_shift.abs()),
            "states_ks": median(self.ks),
            "states_ks_worst": worst(self.ks),
            "states_outside": self.outside_any,
        }


def state_distribution(
    real_obs: th.Tensor | np.ndarray,
    imagined_obs: th.Tensor | np.ndarray,
    observed_range: tuple[np.ndarray, np.ndarray] | None = None,
    margin: float = 0.01,
) -> StateDistribution:
    """
    Compare the states that a model imagines with those that the agent has visited. A shift is not necessarily an error:
    imagined states come from the current policy, those in the buffer also from earlier ones.

    :param real_obs: raw real states, (N, O)
    :param imagined_obs: raw imagined states, (M, O)
    :param observed_range: lowest and highest values ever observed, (O,) each, if ``real_obs`` is a sample of them; None takes
        the range of ``real_obs``
    :param margin: how far, in real standard deviations, a state may lie beyond the observed range and still count as
        inside: at a hard limit (a cosine of 1) half of all predictions exceed it by a rounding error
    :return: the comparison
    :raises ValueError: there are no states, or their dimensions differ
    """
    real, imagined = (th.as_tensor(obs).detach().double().cpu() for obs in (real_obs, imagined_obs))
    if real.ndim != 2 or imagined.ndim != 2 or real.shape[1] != imagined.shape[1] or 0 in (len(real), len(imagined)):
        raise ValueError(
            "real_obs and imagined_obs must have shape (N, O) and (M, O) with at least one row each, got "
            f"{tuple(real.shape)} and {tuple(imagined.shape)}."
        )
    if observed_range is None:
        low, high = real.amin(dim=0), real.amax(dim=0)
    else:
        low, high = (th.as_tensor(end, dtype=th.float64) for end in observed_range)
    std = real.std(dim=0, correction=0)
    scale = nan_where_still(std, real.abs().mean(dim=0))
    # A constant dimension is skipped, because all but exact predictions of it would count as outside
    slack = (margin * scale).nan_to_num(nan=math.inf)
    outside = ~((imagined >= low - slack) & (imagined <= high + slack))
    return StateDistribution(
        mean_shift=(imagined.mean(dim=0) - real.mean(dim=0)) / scale,
        std_shift=(imagined.std(dim=0, correction=0) - std) / scale,
        ks=kolmogorov_smirnov(real, imagined).where(~scale.isnan(), math.nan),
        outside=outside.double().mean(dim=0),
        outside_any=outside.any(dim=1).double().mean().item(),
        real=real,
        imagined=imagined,
    )
