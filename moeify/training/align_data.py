"""Batches as single rows: those to learn from, in an order that a seed gives, and those to judge by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from moeify.data.data_set import batch_tensors, batch_tokens
from moeify.data.held_out_rows import Divider
from moeify.errors import InputError
from moeify.ir.model_graph import Batch


@dataclass(frozen=True, eq=False)
class Division:
    """train, held_out: batches of one row. tokens: of a step."""

    train: tuple[Batch, ...]
    held_out: tuple[Batch, ...]
    tokens: int

    def order(self, seed: int) -> Iterator[tuple[int, Batch]]:
        """Numbered batches of whole rows, without end: every one once, in an order drawn anew each time."""
        generator = torch.Generator().manual_seed(seed)
        batches = self._batches(generator)
        while True:
            for number in torch.randperm(len(batches), generator=generator).tolist():
                yield number, batches[number]

    def _batches(self, generator: torch.Generator) -> list[Batch]:
        """Every row in one of them, in drawn company of its shape that stays: the dense model is asked about a batch once."""
        begun: dict[str, list[Batch]] = {}
        batches = []
        for i in reversed(torch.randperm(len(self.train), generator=generator).tolist()):
            shapes = _shapes(self.train[i])
            rows = begun.setdefault(shapes, [])
            rows.append(self.train[i])
            if _tokens(rows) >= self.tokens:
                batches.append(_joined(begun.pop(shapes)))
        return [*batches, *map(_joined, begun.values())]


def divide(batches: Iterable[Batch], tokens: int) -> Division:
    """Holds every tenth row out, up to some thousand tokens of them.

    Raises InputError for batches with fewer than two rows.
    """
    held: list[Batch] = []
    train: list[Batch] = []
    divider = Divider()
    for batch in batches:
        for row, judges in zip(*divider(batch), strict=True):
            (held if judges else train).append(row)
    if not held:
        raise InputError(f"align: the data hold {len(train)} rows; give at least two, one to learn from and one to judge by")
    return Division(tuple(train), tuple(held), tokens)


def _joined(rows: list[Batch]) -> Batch:
    if len(rows) == 1:
        return rows[0]
    tensors = [batch_tensors(row) for row in rows]
    joined = {name: torch.cat([row[name] for row in tensors]) if value.ndim else value for name, value in tensors[0].items()}
    first = rows[0]
    if isinstance(first, dict):
        return first | joined
    return tuple(joined.get(str(i), value) for i, value in enumerate(first))


def _shapes(row: Batch) -> str:
    return str({name: tuple(value.shape) for name, value in batch_tensors(row).items()})


def _tokens(rows: Iterable[Batch]) -> int:
    return sum(batch_tokens(row) for row in rows)
