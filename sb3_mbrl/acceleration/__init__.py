"""
Faster code, mainly for the CPU, that replaces code of PyTorch and Stable-Baselines3 and gives the same results up to rounding.

Each module has predicates called ``supports…`` that say whether its code applies to given arguments. The plain code is kept:
it runs wherever the faster code does not apply, and the tests compare the two.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from sb3_mbrl.acceleration.memory import keep_freed_memory

VARIABLE = "SB3_MBRL_ACCELERATION"
"""The environment variable that sets the switch when the package is imported."""


def _from_environment() -> bool:
    value = os.environ.get(VARIABLE, "1")
    if value not in ("0", "1"):
        raise ValueError(f"The environment variable {VARIABLE} must be 1 (the default) or 0, got {value!r}.")
    return value == "1"


enabled = _from_environment()
"""
The switch, as in ``torch.backends``: assign to ``sb3_mbrl.acceleration.enabled``, or use :func:`disabled`. All threads of the
process share it, so that autograd's threads and runs in other threads see it too. It is read at the start of each operation,
so a change also affects objects that exist already.
"""


@contextmanager
def disabled() -> Iterator[None]:
    """
    Within the context the plain code runs everywhere, in all threads: Stable-Baselines3's own updates, PyTorch's layers and
    optimizers, everything in float32. Results are the same up to rounding.
    """
    global enabled
    before, enabled = enabled, False
    try:
        yield
    finally:
        enabled = before


__all__ = ["disabled", "enabled", "keep_freed_memory"]
