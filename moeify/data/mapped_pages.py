"""Weights that lie in mapped files (safetensors, torch.load(mmap=True)) take memory while they are looked at, and no longer.

A page of a mapped file that was read stays in the process until the machine is short of memory. `let_go` gives it back at once;
it is read again when it is used again. So whatever goes through a model layer by layer needs the memory of a layer.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: Bytes below which a tensor is left alone: to look costs more than it takes.
LEAST = 1 << 20

#: Bits of an entry of /proc/self/pagemap (Linux, Documentation/admin-guide/mm/pagemap.rst): in memory, in swap, of a file.
_HELD, _OF_FILE = np.uint64(3 << 62), np.uint64(1 << 61)
_PAGEMAP = "/proc/self/pagemap"


def let_go(tensors: Iterable[Any]) -> None:
    """Gives back the pages of those tensors that lie in a mapped file and were not written to.

    Other tensors, and what is no tensor, stay. Nothing is lost, and no value changes. Does nothing on systems that do not tell
    such pages apart: all but Linux.
    """
    spans = list(dict.fromkeys(span for tensor in tensors if (span := _span(tensor)) is not None))
    if not spans:
        return
    try:
        pagemap = os.open(_PAGEMAP, os.O_RDONLY)
    except OSError:
        return
    try:
        for start, size in spans:
            if _of_file(pagemap, start, size):
                _madvise(start, size)
    finally:
        os.close(pagemap)


@contextmanager
def read_module_by_module(model: nn.Module) -> Iterator[None]:
    """Inside, each module lets go of its own parameters when it has run; in the end all do."""

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        let_go(module._parameters.values())

    parameters = [parameter for parameter in model.parameters() if _span(parameter) is not None]
    owners = [m for m in model.modules() if parameters and any(_span(p) is not None for p in m._parameters.values())]
    handles = [module.register_forward_hook(leave) for module in owners]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        let_go(parameters)


def _span(tensor: Any) -> tuple[int, int] | None:
    """The pages that hold the tensor: address and bytes; None for what is small, or not in the memory of this process."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        return None
    if tensor.nbytes < LEAST or not tensor.numel():
        return None
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    first = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    end = tensor.data_ptr() + (last + 1) * tensor.element_size()
    return first, -(-(end - first) // mmap.PAGESIZE) * mmap.PAGESIZE


def _of_file(pagemap: int, start: int, size: int) -> bool:
    """Is every page that is held there an unchanged one of a file? One that was written to is the process's own, as all of
    ordinary memory are: to advise on those would lose what they hold."""
    content = os.pread(pagemap, 8 * (size // mmap.PAGESIZE), 8 * (start // mmap.PAGESIZE))
    pages = np.frombuffer(content, np.uint64)
    held = pages[(pages & _HELD) != 0]
    return len(pages) == size // mmap.PAGESIZE and len(held) > 0 and bool(((held & _OF_FILE) != 0).all())


def _madvise(start: int, size: int) -> None:
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)
