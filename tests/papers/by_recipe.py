"""A shipped recipe run on one tiny FFN, outside any model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from moeify.api.planning import registry
from moeify.ir.facts import CalibrationData, Fact, FeedForwards
from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_spec import MoESpec
from moeify.pipeline.context import PassContext
from moeify.pipeline.each_layer import EachLayer
from moeify.pipeline.recipe import presets
from moeify.pipeline.running import run_passes
from moeify_passes.routers.held_out import held_out
from passes.tiny import graph_of


@dataclass
class Remembering(PassContext):
    """Keeps what passes gave, by type, after rewrites have made it untrue."""

    given: dict[type[Any], Any] = field(default_factory=dict)

    def put(self, site: FeedForward | None, fact: Fact) -> None:
        self.given[type(fact)] = fact
        super().put(site, fact)


def by_recipe(name: str, site: FeedForward, inputs: Tensor, settings: dict[str, Any]) -> tuple[MoESpec, Remembering]:
    """The spec that the recipe makes of the site on those inputs [tokens, hidden], and what passes found."""
    recipe = presets()[name]
    for option, value in settings.items():
        of, _, field_name = option.partition(".")
        recipe = recipe.set(of, field_name, value)
    graph = graph_of(site)
    context = Remembering(batches=[{"x": x} for x in torch.split(inputs, 100)])
    context.put(None, FeedForwards(1, 0))
    context.put(None, CalibrationData())
    for step in recipe.build(registry()).passes:
        if isinstance(step, EachLayer):
            context.inputs = lambda _: iter(torch.split(inputs, 100))
            run_passes(step.passes, graph, context)
        elif step.name != "find-feed-forward":
            run_passes((step,), graph, context)
    return graph.specs[site.path], context


def fitted_on(site: FeedForward, inputs: Tensor) -> Tensor:
    """The nine tenths of the inputs that fits are made on; the other tenth judges them."""
    return held_out(site, inputs, PassContext().generator("held-out", site))[0]


def sets(spec: MoESpec) -> list[set[int]]:
    """The neurons of each routed expert."""
    return [set(expert.tolist()) for expert in spec.experts]
