"""Memory that is freed goes back to the system: what work on one layer took is not held while the next one is worked on.

glibc serves a large block by a mapping of its own, which goes when the block is freed. But each time one goes, it moves the
size from which blocks count as large up to that of this one (mallopt(3), M_MMAP_THRESHOLD), to 32 MiB in the end. From then on
the matrices of a layer lie on the heap among small values that are kept. What is free between those stays with the process, and
fits the next layer's matrices or does not: the process grows layer by layer, by more or less from run to run.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: Bytes from which a block is mapped by itself. With less, more time goes into clearing new pages; with more, more stays.
LARGE = 1 << 20

#: Where glibc's own adjusting ends, on a system of 64 bits.
_MOST = 32 << 20

#: Parameters of mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Inside, blocks of LARGE bytes and more go back to the system when they are freed, on every thread of the process.

    Afterwards the sizes are as high as glibc sets them by itself, and stay there: its adjusting cannot be turned on again.
    Where the user has set them (MALLOC_MMAP_THRESHOLD_, GLIBC_TUNABLES), and under another malloc, nothing changes.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or "mmap_threshold" in os.environ.get("GLIBC_TUNABLES", ""):
        yield
        return
    _set_large(LARGE)
    try:
        yield
    finally:
        _set_large(_MOST)


def close_holes() -> None:
    """Gives back what lies free between the values that are kept."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))


def _set_large(size: int) -> None:
    """glibc keeps twice as much free at the end of the heap as the size of a large block: so do we."""
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, size)
        libc.mallopt(_TRIM_THRESHOLD, 2 * size)
