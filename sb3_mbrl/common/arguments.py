"""What arguments may be."""

import math
from numbers import Integral, Real
from typing import Any


def check_number(
    name: str, value: Any, lowest: float, highest: float = math.inf, above: bool = False, integer: bool = False
) -> None:
    """
    :param name: of an argument
    :param value: its value
    :param lowest: that is accepted
    :param highest: that is accepted
    :param above: ``lowest`` is not accepted itself
    :param integer: nothing but integers is accepted
    :raises ValueError: it is not accepted
    """
    fits = isinstance(value, Integral if integer else Real) and math.isfinite(value) and lowest <= float(value) <= highest
    if not fits or (above and value == lowest):
        kind = "an integer" if integer else "a number"
        bounds = f"{'above' if above else 'of at least'} {lowest}" + (f" and at most {highest}" if highest < math.inf else "")
        raise ValueError(f"{name} must be {kind} {bounds}, got {value!r}.")
