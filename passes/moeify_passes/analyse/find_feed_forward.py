"""Finds the feed-forward networks of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moeify.ir.facts import Fact, FeedForwards
from moeify.ir.model_graph import ModelGraph
from moeify.pipeline.context import PassContext
from moeify_passes.analyse.layer_selection import check_layers, select_layers


@dataclass(frozen=True)
class FindFeedForward:
    """Asks the host for its FFNs and keeps those to convert; a model without any is left as it is.

    layers: path patterns such as "*.mlp", "last-half", or "every:2" (the 2nd, 4th, ... FFN in execution order); several,
    separated by commas, add up. EMoE converts the last half, or every second or fourth layer.
    """

    layers: str = "*"

    name: ClassVar[str] = "find-feed-forward"
    needs: ClassVar[tuple[type[Fact], ...]] = ()
    uses: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (FeedForwards,)
    keeps: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_layers(self.layers)

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        """Fills graph.sites and graph.refusals. Raises UsageError where `layers` picks none of the FFNs."""
        found, graph.refusals = graph.host.find()
        graph.sites = select_layers(found, self.layers)
        context.put(None, FeedForwards(len(found), len(graph.refusals)))
        return False
