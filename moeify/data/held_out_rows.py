"""Rows of data that an alignment is judged by: nothing that comes before it may have learned from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from operator import itemgetter
from typing import Any

from torch import Tensor

from moeify.data.data_set import DataSet, Sourced, batch_rows, batch_tokens, until
from moeify.ir.model_graph import Batch

#: Tokens of such rows at most: a look at them costs two forwards, and time is what an alignment has little of.
HELD_OUT = 2048
#: The second of every ten rows: so two rows are enough for one, and a stream need not be read to its end.
_EVERY, _PLACE = 10, 1


class Divider:
    """Tells which rows of the batches that it is shown, one after the other, are held out."""

    def __init__(self) -> None:
        self._number = self._held = 0

    def __call__(self, batch: Batch) -> tuple[list[Batch], list[bool]]:
        """Its rows as batches of one, and which of them are held out."""
        rows, out = list(_rows(batch)), list[bool]()
        for row in rows:
            out.append(self._number % _EVERY == _PLACE and self._held < HELD_OUT)
            self._number, self._held = self._number + 1, self._held + batch_tokens(row) * out[-1]
        return rows, out


def without_held_out(data: DataSet, tokens: int) -> DataSet:
    """The other rows of the data, up to the batch that brings them to so many tokens."""

    def source() -> Iterator[Sourced]:
        return until(_kept(data.source()), tokens)

    return replace(data, source=source)


def _kept(batches: Iterable[Sourced]) -> Iterator[Sourced]:
    divide = Divider()
    for number, batch in batches:
        _, out = divide(batch)
        left = [place for place, held in enumerate(out) if not held]
        if left:
            yield number, batch if not any(out) else _each_tensor(batch, itemgetter(left))


def _rows(batch: Batch) -> Iterator[Batch]:
    for i in range(batch_rows(batch)):
        yield _each_tensor(batch, itemgetter(slice(i, i + 1)))


def _each_tensor(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with those of its tensors changed that have a place for each of its rows."""
    count = batch_rows(batch)

    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, Tensor) and value.ndim and value.shape[0] == count else value

    if isinstance(batch, dict):
        return {name: changed(value) for name, value in batch.items()}
    return tuple(changed(value) for value in batch)
