"""
The same numbers, faster: code for processors that takes the place of PyTorch's and Stable-Baselines3's where it applies.

Each module asks in a function ``supports`` whether its code applies. The plain code that it stands in for stays beside it, is
what runs elsewhere, and is what the tests compare it with.
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
The switch, as in ``torch.backends``: assign to ``sb3_mbrl.acceleration.enabled``, or use :func:`disabled`. It is one variable
for the process, not one for each thread, so that autograd's threads and runs in other threads see it too. It is read whenever
an operation begins, and nothing that was built before depends on it.
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
