"""Divides a budget for the whole model among its layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from moeify.errors import ConversionError, UsageError
from moeify.ir.facts import Budget, CalibrationData, Fact, FeedForwards
from moeify.ir.model_graph import Batch, ModelGraph
from moeify.pipeline.context import PassContext
from moeify_passes.shares.beam_search import BeamSearch
from moeify_passes.shares.error_curves import ErrorCurves
from moeify_passes.shares.exponential_errors import ExponentialErrors
from moeify_passes.shares.share_rule import Limits
from moeify_passes.shares.uniform_shares import UniformShares

#: Tokens of one text.
_LENGTH = 128


@dataclass(frozen=True)
class AllocateBudget:
    """Gives more to layers whose errors do more to the model's output.

    active: the mean over layers, by their weights. by: what decides. tokens: of calibration data to look at, in the
    beginnings of rows from several batches. least: no layer gets less than this part of `active`. whole: a layer that would get
    more than this fraction stays dense.
    """

    active: float = 0.5
    by: UniformShares | ExponentialErrors | ErrorCurves | BeamSearch = field(default_factory=ExponentialErrors)
    tokens: int = 256
    least: float = 0.5
    whole: float = 0.92

    name: ClassVar[str] = "allocate-budget"
    needs: ClassVar[tuple[type[Fact], ...]] = (FeedForwards, CalibrationData)
    uses: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (Budget,)
    keeps: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("active", "least", "whole"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"allocate-budget.{name} is {getattr(self, name)}: choose a fraction above 0 and up to 1")
        if not self.tokens > 0:
            raise UsageError(f"allocate-budget.tokens is {self.tokens}: choose a number above 0")

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        """Gives a Budget for every site. Raises ConversionError where the model's output is not finite."""
        if not graph.sites:
            return False
        if context.batches is None:
            raise ConversionError("allocate-budget needs calibration data")
        limits = Limits(self.active, self.least * self.active, self.whole)
        shares = self.by.shares(graph, list(_rows(context.batches, self.tokens)), context, limits)
        for site, share in zip(graph.sites, shares):
            context.put(site, Budget(share))
            context.measure(site, budget=share)
        return False


def _rows(batches: Iterable[Batch], tokens: int) -> Iterator[Batch]:
    """The beginning of the first row of each batch until that makes so many tokens: elements of the first tensor of whole
    numbers, else rows."""
    seen = 0
    for batch in batches:
        row = _beginning(batch)
        ids = [t for t in _tensors(row) if not t.dtype.is_floating_point]
        seen += max(ids[0].numel() if ids else 1, 1)
        yield row
        if seen >= tokens:
            return


def _beginning(batch: Batch) -> Batch:
    """The first row, cut where it is tokens and nothing else, none of them padding: more texts tell more than longer ones."""
    rows = next((len(t) for t in _tensors(batch) if t.ndim), 0)
    named = batch.items() if isinstance(batch, dict) else ()
    padded = any("mask" in name and isinstance(mask, Tensor) and not bool(mask[:1].all()) for name, mask in named)
    cut = not padded and all(t.ndim == 2 and not t.dtype.is_floating_point for t in _tensors(batch))

    def first(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.ndim and len(value) == rows):
            return value
        return value[:1, :_LENGTH] if cut else value[:1]

    return {name: first(value) for name, value in batch.items()} if isinstance(batch, dict) else tuple(map(first, batch))


def _tensors(batch: Batch) -> list[Tensor]:
    values = batch.values() if isinstance(batch, dict) else batch
    return [value for value in values if isinstance(value, Tensor)]
