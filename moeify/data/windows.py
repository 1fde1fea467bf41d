"""Text -> token ids -> windows -> batches, as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

import torch
from torch import Tensor

from moeify.data.text_encoder import SHORTEST, TextEncoder
from moeify.data.text_inputs import TextInputs
from moeify.errors import InputError
from moeify.ir.model_graph import Batch


def window_batches(encoder: TextEncoder, ids: Iterator[int], window: int, batch: int, inputs: TextInputs) -> Iterator[Batch]:
    """Batches of full windows; a last partial window of at least two text tokens is a batch of its own."""
    size = encoder.content(window)
    rows: list[list[int]] = []
    row: list[int] = []

    def tensor(lines: list[list[int]]) -> Tensor:
        return torch.tensor([[*encoder.prefix, *line, *encoder.suffix] for line in lines], dtype=torch.int64)

    for token in ids:
        row.append(token)
        if len(row) == size:
            rows.append(row)
            row = []
        if len(rows) == batch:
            yield inputs(tensor(rows))
            rows = []
    if rows:
        yield inputs(tensor(rows))
    if len(row) >= SHORTEST:
        yield inputs(tensor([row]))


def first_of(ids: Iterator[int], where: str) -> Iterator[int]:
    """The same ids. Raises InputError where there are fewer than two."""
    head = list(islice(ids, SHORTEST))
    if len(head) < SHORTEST:
        raise InputError(f"{where}: holds {len(head)} tokens; give at least {SHORTEST}")
    return chain(head, ids)
