"""A list of tensor dictionaries that takes a bounded amount of memory; what is more lies in temporary files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Values = dict[str, Any]


class SpilledList:
    """Values by index. At most `memory` bytes of tensors stay in memory; use as a context manager, or call `close`."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._held: list[Values | None] = []
        self._sizes: list[int] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __len__(self) -> int:
        return len(self._held)

    @property
    def spilled(self) -> int:
        """How many entries lie in files."""
        return sum(values is None for values in self._held)

    def append(self, values: Values) -> None:
        self._held.append(None)
        self._sizes.append(0)
        self.store(len(self) - 1, values)

    def load(self, index: int) -> Values:
        values = self._held[index]
        return dict(values) if values is not None else torch.load(self._path(index), weights_only=True)

    def store(self, index: int, values: Values) -> None:
        values = pytree.tree_map_only(Tensor, _owning, values)
        size = sum(t.nbytes for t in pytree.tree_leaves(values) if isinstance(t, Tensor))
        self._sizes[index] = 0
        if sum(self._sizes) + size <= self._memory:
            self._held[index], self._sizes[index] = values, size
            if self._folder is not None:
                self._path(index).unlink(missing_ok=True)
        else:
            self._held[index] = None
            torch.save(values, self._path(index))

    def close(self) -> None:
        self._held.clear()
        self._sizes.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _path(self, index: int) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="moeify-walk-")
        return Path(self._folder.name) / f"{index}.pt"


def _owning(value: Tensor) -> Tensor:
    """A view that keeps a much larger storage alive becomes a copy of its own."""
    return value.clone() if value.untyped_storage().nbytes() > 2 * max(value.nbytes, 1024) else value
