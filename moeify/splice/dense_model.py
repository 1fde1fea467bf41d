"""What is asked of the dense model alone, wherever it is held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import Batch, Loss, OutputGradient, Walk


class DenseModel(Protocol):
    """A part of `moeify.ir.model_graph.Host`, with the same values bit by bit: analyses do not notice where they are from."""

    def walk(self, batches: Iterable[Batch]) -> AbstractContextManager[Walk]:
        """`Host.walk` on the dense prefix."""
        ...

    def gradients(self, batches: Iterable[Batch], loss: Loss, dynamic: bool) -> Iterator[dict[str, OutputGradient]]:
        """`Host.gradients`; dynamic: the traced graph takes rows one by one."""
        ...

    def effects(
        self, sites: Sequence[FeedForward], batches: Iterable[Batch], size: float, generator: torch.Generator
    ) -> list[float]:
        """`Host.effects`."""
        ...
