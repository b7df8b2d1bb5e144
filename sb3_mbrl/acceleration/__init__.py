"""
Faster code, mainly for the CPU, that replaces code of PyTorch and Stable-Baselines3 and gives the same results up to rounding.

Each module has predicates called ``supports…`` that say whether its code applies to given arguments. The plain code is kept:
it runs wherever the faster code does not apply, and the tests compare the two.
"""

import os
import threading
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


_lock = threading.Lock()
_n_contexts = 0
"""Number of :func:`disabled` contexts that are open, in all threads."""
_before = enabled
"""The switch before the first of them was entered."""


@contextmanager
def disabled() -> Iterator[None]:
    """
    Within the context the plain code runs everywhere, in all threads: Stable-Baselines3's own updates, PyTorch's layers and
    optimizers, everything in float32. Results are the same up to rounding. Where contexts of several threads overlap, the last
    one that is left restores the switch.
    """
    global enabled, _n_contexts, _before
    with _lock:
        _before = enabled if _n_contexts == 0 else _before
        _n_contexts += 1
        enabled = False
    try:
        yield
    finally:
        with _lock:
            _n_contexts -= 1
            enabled = _before if _n_contexts == 0 else enabled


__all__ = ["disabled", "enabled", "keep_freed_memory"]
