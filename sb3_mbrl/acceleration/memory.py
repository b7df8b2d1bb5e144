"""Memory that is freed and needed again at once."""

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``."""


def keep_freed_memory(trim_threshold: int = 2**29, mmap_threshold: int = 2**25) -> None:
    """
    Planners and imagination come by large intermediate results, one after the other. glibc gives the memory of each back to
    the system, which clears it page by page for the next one: up to a quarter of the time of a plan. Elsewhere this does
    nothing.

    :param trim_threshold: bytes of freed memory that the process keeps
    :param mmap_threshold: bytes; larger blocks are still given back, each for itself. glibc accepts at most 32 MiB
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, trim_threshold)
        mallopt(M_MMAP_THRESHOLD, mmap_threshold)
