"""Workers that are no other processes: what goes to them and comes from them is copied, as on its way it would be."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.pipeline.context import PassContext
from moeify.pipeline.contract import Pass
from moeify.pipeline.each_layer import finish_layer
from moeify.pipeline.finished import FinishedLayer
from moeify.splice.eager_host import UNBOUNDED, EagerHost


@dataclass
class InProcess:
    """Hold a second, equal model."""

    host: EagerHost
    data: Sequence[tuple[object, ...]] | None
    asked: list[str] = field(default_factory=list)

    def layers(
        self, passes: Sequence[Pass], sites: Sequence[FeedForward], context: PassContext
    ) -> Iterator[tuple[FinishedLayer, dict[str, float]]]:
        own = {site.path: site for site in self.host.found().sites}
        for site in sites:
            self.asked.append(site.path)
            about = copy.deepcopy(context.about(site))
            with self.host.graph_walk(self.data or (), "dense", UNBOUNDED) as walk:
                about.inputs = None if self.data is None else walk.inputs
                layer = finish_layer(passes, own[site.path], ModelGraph(self.host, (own[site.path],)), about)
            yield copy.deepcopy(layer), dict(about.seconds)
