"""Divides a budget for the whole model among its layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from moeify.errors import ConversionError, UsageError
from moeify.ir.facts import Budget, CalibrationData, Fact, FeedForwards
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import Batch, ModelGraph
from moeify.pipeline.context import PassContext


@dataclass(frozen=True)
class AllocateBudget:
    """Gives more to layers whose errors do more to the model's output.

    Each layer's output is disturbed in turn by noise of `noise` times its norm, and the change of the model's output is its
    effect a (mean KL of logits, else the squared relative error). The error of a layer is taken to fall with its active
    fraction f as exp(-slope f); then the sum of a exp(-slope f) is least at f = (log(a / weights) - a constant) / slope, within
    bounds.

    active: the mean over layers, by their weights. tokens: of calibration data to look at, in rows from several batches. least:
    no layer gets less than this part of `active`. whole: a layer that would get more than this fraction stays dense.
    """

    active: float = 0.5
    tokens: int = 256
    noise: float = 0.3
    slope: float = 4.0
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
        for name in ("tokens", "noise", "slope"):
            if not getattr(self, name) > 0:
                raise UsageError(f"allocate-budget.{name} is {getattr(self, name)}: choose a number above 0")

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        """Gives a Budget for every site. Raises ConversionError where the model's output is not finite."""
        if not graph.sites:
            return False
        if context.batches is None:
            raise ConversionError("allocate-budget needs calibration data")
        batches = list(_rows(context.batches, self.tokens))
        effects = graph.host.effects(graph.sites, batches, self.noise, context.generator("allocate-budget"))
        if not all(map(math.isfinite, effects)):
            raise ConversionError(
                "allocate-budget: the model's output is not finite on the calibration data; check its weights"
            )
        shares = self.divide(graph.sites, effects)
        for site, effect, share in zip(graph.sites, effects, shares):
            context.put(site, Budget(share))
            context.measure(site, output_effect=effect, budget=share)
        return False

    def divide(self, sites: Iterable[FeedForward], effects: list[float]) -> list[float]:
        """The active fraction of each site; their mean, by weights, is `active` (or a little less, as bounds have it)."""
        weights = [site.parameters for site in sites]
        wishes = [math.log(max(a, 1e-12) / w) / self.slope for a, w in zip(effects, weights)]
        low, high = -max(wishes), 1.0 - min(wishes)
        for _ in range(60):
            middle = (low + high) / 2
            shares = [self._bounded(wish + middle) for wish in wishes]
            spent = sum(s * w for s, w in zip(shares, weights)) / sum(weights)
            low, high = (low, middle) if spent > self.active else (middle, high)
        return [self._bounded(wish + low) for wish in wishes]

    def _bounded(self, share: float) -> float:
        share = max(share, self.least * self.active)
        return 1.0 if share > self.whole else share


def _rows(batches: Iterable[Batch], tokens: int) -> Iterator[Batch]:
    """The first row of each batch until that makes so many tokens: elements of the first tensor of whole numbers, else rows."""
    seen = 0
    for batch in batches:
        row = _first_row(batch)
        ids = [t for t in _tensors(row) if not t.dtype.is_floating_point]
        seen += max(ids[0].numel() if ids else 1, 1)
        yield row
        if seen >= tokens:
            return


def _first_row(batch: Batch) -> Batch:
    rows = next((len(t) for t in _tensors(batch) if t.ndim), 0)

    def first(value: Any) -> Any:
        return value[:1] if isinstance(value, Tensor) and value.ndim and len(value) == rows else value

    return {name: first(value) for name, value in batch.items()} if isinstance(batch, dict) else tuple(map(first, batch))


def _tensors(batch: Batch) -> list[Tensor]:
    values = batch.values() if isinstance(batch, dict) else batch
    return [value for value in values if isinstance(value, Tensor)]
