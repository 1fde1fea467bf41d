"""Batches that can be read again and again, and what is known about them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from moeify.errors import InputError
from moeify.ir.model_graph import Batch


def batch_tensors(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch by name, or by position ("0", "1", ...)."""
    pairs = batch.items() if isinstance(batch, dict) else ((str(i), value) for i, value in enumerate(batch))
    return {name: value for name, value in pairs if isinstance(value, Tensor)}


def batch_rows(batch: Batch) -> int:
    """The number of rows: the first dimension of the first tensor (0 where there is none)."""
    first = next(iter(batch_tensors(batch).values()), None)
    return 0 if first is None or first.ndim == 0 else first.shape[0]


def batch_tokens(batch: Batch) -> int:
    """The number of tokens: the elements of `input_ids` that the attention mask does not hide, or of a first tensor that
    holds integers; else the number of rows."""
    tensors = batch_tensors(batch)
    ids = tensors.get("input_ids", next(iter(tensors.values()), None))
    if ids is None or ids.dtype.is_floating_point or ids.ndim == 0:
        return batch_rows(batch)
    mask = tensors.get("attention_mask")
    return ids.numel() if mask is None or mask.shape != ids.shape else int(mask.count_nonzero())


#: A batch, and the number of the source that it is of (0 where there is one).
Sourced = tuple[int, Batch]


@dataclass(eq=False)
class DataSet:
    """Re-iterable batches. Each iteration reads the source anew, so memory stays bounded.

    kind: text, jsonl, tensors, callable, batches or mixed. name: the file, callable or type. options: how it is read.
    parts: the sources of a mixed one. order: whose each batch is, a number in `parts`; grows as they are read.
    Iterating raises InputError for what the source should not hold, and for a source without a batch.
    """

    kind: str
    name: str
    source: Callable[[], Iterator[Sourced]] = field(repr=False)
    digest: Callable[[], str | None] = field(repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[DataSet, ...] = ()
    order: list[int] = field(default_factory=list, init=False, repr=False)
    _read: tuple[int, int, int] = (0, 0, 0)  # batches, rows, tokens of the longest iteration so far

    def __iter__(self) -> Iterator[Batch]:
        batches = rows = tokens = 0
        for number, batch in self.source():
            if batches == len(self.order):
                self.order.append(number)
            batches, rows, tokens = batches + 1, rows + batch_rows(batch), tokens + batch_tokens(batch)
            self._read = max(self._read, (batches, rows, tokens))
            yield batch
        if not batches:
            raise InputError(f"{self.name}: holds no batch; give data with at least one row")

    def describe(self) -> dict[str, Any]:
        """Plain data for reports: kind, name, digest ("sha256:...", None for a callable), options, how many batches, rows and
        tokens the longest iteration so far has read, and the same of each source of a mixed one."""
        batches, rows, tokens = self._read
        parts = {"sources": [part.describe() for part in self.parts]} if self.parts else {}
        return {**self.identity(), "batches": batches, "rows": rows, "tokens": tokens, **parts}

    def identity(self) -> dict[str, Any]:
        """What `describe` says but for what was read so far: equal for data that give the same batches."""
        parts = {"sources": [part.identity() for part in self.parts]} if self.parts else {}
        return {"kind": self.kind, "name": self.name, "digest": self.digest(), **self.options, **parts}


def of_one(batches: Iterable[Batch]) -> Iterator[Sourced]:
    """Batches that are all of one source."""
    return zip(repeat(0), batches)


def until(batches: Iterator[Sourced], tokens: int | None) -> Iterator[Sourced]:
    """The batches up to the one that brings the number of tokens to `tokens`; None: all."""
    seen = 0
    for number, batch in batches:
        yield number, batch
        seen += batch_tokens(batch)
        if tokens is not None and seen >= tokens:
            return


def as_batch(value: Any, where: str) -> Batch:
    """A batch from what people yield: a mapping, a tuple or list, or one tensor. Raises InputError for anything else."""
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, Mapping):
        found: Batch = dict(value)
    elif isinstance(value, tuple | list):
        found = tuple(value)
    else:
        raise InputError(f"{where}: a batch is a dict, a tuple or a tensor, not {type(value).__name__}")
    tensors = batch_tensors(found)
    if not tensors:
        raise InputError(f"{where}: a batch holds no torch.Tensor (found {type(value).__name__} of {_types(found)})")
    if not any(tensor.numel() for tensor in tensors.values()):
        raise InputError(f"{where}: a batch holds no row")
    return found


def _types(batch: Batch) -> str:
    values = batch.values() if isinstance(batch, dict) else batch
    return ", ".join(sorted({type(value).__name__ for value in values})) or "nothing"


def on_device(batch: Batch, device: torch.device | str) -> Batch:
    """The same batch with its tensors on that device."""

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    if isinstance(batch, dict):
        return {name: moved(value) for name, value in batch.items()}
    return tuple(moved(value) for value in batch)
