"""Whether a converted model can fit where it is to be made, and how sparing with memory its making has to be."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from moeify.data.heap import blocks_kept, large_blocks_apart
from moeify.errors import UsageError

#: Where Linux says what a container may use; "max" is no limit.
_LIMIT = Path("/sys/fs/cgroup/memory.max")

#: Memory is plenty where it is so many times what the model's weights take, and so many times what a conversion is thought to
#: take beside those that stay in their files.
_WEIGHTS, _PEAKS = 16, 4


def check_memory(weights: int, device: str, of: str = "") -> None:
    """Raises UsageError where weights of so many bytes are more than the whole memory; on other devices than the CPU it does
    not know. What fits is not promised to run well: the plan tells the peak. of: " a layer" where they are those of one."""
    if device.startswith("cpu") and (whole := machine_memory()) is not None and weights > whole:
        raise UsageError(
            f"the converted weights take {weights / 2**30:,.1f} GiB{of} and this machine has {whole / 2**30:,.1f} GiB of "
            "memory: choose fewer experts (--experts), fewer layers (--layers) or --dtype bf16"
        )


def machine_memory() -> int | None:
    """Bytes of memory that this machine, or container, has at all; None where it does not say."""
    found = []
    with suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):
        found.append(int(_LIMIT.read_text("ascii")))
    return min((size for size in found if size > 0), default=None)


def frugality(weights: int, peak: int, *, streamed: bool) -> AbstractContextManager[None]:
    """How freed memory is treated by a conversion to weights of so many bytes that is thought to need `peak`: kept for what
    comes next where the machine has plenty, which is faster; given back at once where weights stay in files; else as ever."""
    whole = machine_memory()
    if whole is not None and max(_WEIGHTS * weights, _PEAKS * peak) <= whole:
        return blocks_kept()
    return large_blocks_apart() if streamed else nullcontext()
