"""Where freed memory goes: back to the system, or to whatever is computed next.

glibc serves a large block by a mapping of its own, which goes when the block is freed. But each time one goes, it moves the
size from which blocks count as large up to that of this one (mallopt(3), M_MMAP_THRESHOLD), to 32 MiB in the end. That is bad
in both directions. The matrices of a layer lie on the heap among small values that are kept: what is free between those stays
with the process, and fits the next layer's matrices or does not, so a process grows layer by layer, by more or less from run to
run. And what is larger is made of new pages each time: to clear those takes longer than to compute what goes into them.
So a conversion says which of the two it wants.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: Bytes from which a block is mapped by itself. With less, more time goes into clearing new pages; with more, more stays.
LARGE = 1 << 20

#: Where glibc's own adjusting ends, on a system of 64 bits; and how many mappings it makes by itself.
_MOST, _MAPPINGS = 32 << 20, 65536

#: Parameters of mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4

#: As much as mallopt takes: everything.
_EVERYTHING = 2**31 - 1

#: Does malloc, which is one for the whole process, keep everything, for each `blocks_kept` that it is inside of?
_keeping: list[bool] = []

#: What the user may have set: then nothing changes.
_CHOSEN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_")
_CHOSEN_TUNABLES = ("mmap_threshold", "trim_threshold", "mmap_max")


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Inside, blocks of LARGE bytes and more go back to the system when they are freed, on every thread of the process.

    Afterwards the sizes are as high as glibc sets them by itself, and stay there: its adjusting cannot be turned on again.
    Where the user has set them (MALLOC_MMAP_THRESHOLD_, GLIBC_TUNABLES), and under another malloc, nothing changes.
    """
    with _set(large=LARGE, mappings=_MAPPINGS, kept=2 * LARGE):
        yield


@contextmanager
def blocks_kept() -> Iterator[None]:
    """Inside, what is freed stays with the process for what comes next, large or small; it goes back at the end.

    A temporary of 24 MiB is filled in a seventh of the time. The process holds the most that it ever had in use, and holes. The
    end, and who has set something else, are as in `large_blocks_apart`.
    """
    with _set(large=_MOST, mappings=0, kept=_EVERYTHING) as set_so:
        _keeping.append(set_so)
        try:
            yield
        finally:
            _keeping.pop()
    close_holes()


def close_holes() -> None:
    """Gives back what lies free between the values that are kept; inside `blocks_kept` it stays."""
    if not any(_keeping):
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))


@contextmanager
def _set(*, large: int, mappings: int, kept: int) -> Iterator[bool]:
    """large: bytes from which blocks are mapped, at most so many of them; kept: bytes that stay free at the heap's end. Gives
    False, and sets nothing, where the user has chosen."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if any(name in os.environ for name in _CHOSEN) or any(name in tunables for name in _CHOSEN_TUNABLES):
        yield False
        return
    _tell(large, mappings, kept)
    try:
        yield True
    finally:
        _tell(_MOST, _MAPPINGS, 2 * _MOST)  # twice the size of a large block is what glibc keeps by itself


def _tell(large: int, mappings: int, kept: int) -> None:
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        for parameter, value in ((_MMAP_THRESHOLD, large), (_MMAP_MAX, mappings), (_TRIM_THRESHOLD, kept)):
            libc.mallopt(parameter, value)
