"""Keep freed memory in the process instead of returning it to the system."""

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``."""


def keep_freed_memory(trim_threshold: int = 2**29, mmap_threshold: int = 2**25) -> None:
    """
    Make the process keep memory that it frees, up to half a gigabyte by default. Planners and imagination allocate large
    intermediate results one after the other. By default glibc returns each of them to the system, which clears the memory page
    by page when it hands it out again.

    This changes the whole process until it ends, so no module of this package calls it; your program may. With a C library
    other than glibc it does nothing.

    :param trim_threshold: bytes of freed memory at the top of the heap that the process keeps
    :param mmap_threshold: bytes; larger blocks are still mapped and returned one by one. glibc accepts at most 32 MiB
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, trim_threshold)
        mallopt(M_MMAP_THRESHOLD, mmap_threshold)
