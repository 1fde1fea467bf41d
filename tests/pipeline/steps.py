"""Passes that do next to nothing, for tests of what surrounds passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from moeify.ir.facts import Experts, Fact, FeedForwards, NeuronGroups
from moeify.ir.model_graph import ModelGraph
from moeify.pipeline.context import PassContext
from moeify.pipeline.contract import Pass

Run = Callable[[ModelGraph, PassContext], bool]


def nothing(graph: ModelGraph, context: PassContext) -> bool:
    return False


@dataclass(frozen=True)
class Step:
    """A pass with everything settable."""

    name: str
    needs: tuple[type[Fact], ...] = ()
    gives: tuple[type[Fact], ...] = ()
    keeps: tuple[type[Fact], ...] = ()
    uses: tuple[type[Fact], ...] = ()
    rewrites: bool = False
    does: Run = nothing

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        return self.does(graph, context)


@dataclass(frozen=True)
class FindThings:
    """Finds things."""

    layers: str = "*"

    name: ClassVar[str] = "find-things"
    needs: ClassVar[tuple[type[Fact], ...]] = ()
    uses: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (FeedForwards,)
    keeps: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = False

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        return False


@dataclass(frozen=True)
class GroupThings:
    """Groups things."""

    groups: int = 4
    share: float = 0.5
    limit: int | None = None

    name: ClassVar[str] = "group-things"
    needs: ClassVar[tuple[type[Fact], ...]] = (FeedForwards,)
    uses: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (NeuronGroups,)
    keeps: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = False

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        return False


@dataclass(frozen=True)
class SplitThings:
    """Splits things."""

    name: ClassVar[str] = "split-things"
    needs: ClassVar[tuple[type[Fact], ...]] = (NeuronGroups,)
    uses: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (Experts,)
    keeps: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = True

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        return False


THINGS: tuple[type[Pass], ...] = (FindThings, GroupThings, SplitThings)
