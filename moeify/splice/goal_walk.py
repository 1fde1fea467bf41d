"""Two journeys side by side: through the converted model, and through the dense one that it came from."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Self

from torch import Tensor

from moeify.ir.feed_forward import FeedForward
from moeify.splice.walk import GraphWalk


class DenseBeside:
    """A `moeify.ir.model_graph.GoalWalk`: the dense model passes each site while its weights are still there."""

    def __init__(self, converted: GraphWalk, dense: GraphWalk) -> None:
        self._converted, self._dense = converted, dense

    def __enter__(self) -> Self:
        self._converted.__enter__()
        self._dense.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._dense.__exit__(kind, error, trace)
        self._converted.__exit__(kind, error, trace)

    def inputs(self, site: FeedForward) -> Iterator[Tensor]:
        return self._converted.inputs(site)

    def goals(self, site: FeedForward) -> Iterator[Tensor] | None:
        found = self._converted.output_sum(site)
        if found is None:
            return None
        wanted = self._dense.totals(site, (found.total,), until=found.total)
        there = self._converted.totals(site, found.others, until=found.ready)
        return (total - others for total, others in zip(wanted, there, strict=True))

    def leave(self, site: FeedForward) -> None:
        self._converted.leave(site)
        self._dense.leave(site)
