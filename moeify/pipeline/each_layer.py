"""The loop over layers: analyse one site, rewrite it, splice it, go on with what the converted model then computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

from moeify.errors import UsageError
from moeify.ir.facts import Fact, FeedForwards, OutputGoals
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph, Walk
from moeify.pipeline.context import PassContext
from moeify.pipeline.contract import Pass
from moeify.pipeline.finished import FinishedLayer
from moeify.pipeline.judging import judge
from moeify.pipeline.layer_workers import LayerWorkers
from moeify.pipeline.running import run_passes
from moeify.pipeline.size import parse_size


@dataclass(frozen=True)
class EachLayer:
    """Runs its passes on one site after another in execution order, then splices the site and drops its facts.

    prefix: the inputs of a layer come from the "converted" layers before it, or from the "dense" ones.
    memory: how much the values that are alive between two layers may take, over all calibration batches ("1GiB" or
        bytes); what is more goes to a temporary file.

    With calibration data every layer is judged before it is spliced, whatever its passes were: moeify.measure.layer_errors,
    reported as `nulls`. Copies of the FFN are not, for they leave nothing of it idle.

    A layer that an earlier run of the same conversion has finished (`PassContext.finished`) is spliced as that run left it,
    and its passes are not run again. With other processes at hand (`PassContext.workers`) the passes run there, if layers do
    not hang on each other: on the dense prefix, or without calibration data.
    """

    passes: tuple[Pass, ...]
    prefix: Literal["converted", "dense"] = "converted"
    memory: int | str = "1GiB"

    name: ClassVar[str] = "each-layer"
    needs: ClassVar[tuple[type[Fact], ...]] = (FeedForwards,)
    uses: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    keeps: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.prefix not in ("converted", "dense"):
            raise UsageError(f"each-layer.prefix is {self.prefix!r}: choose converted or dense")
        parse_size(self.memory, "each-layer.memory")

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        """Returns whether any site was spliced."""
        before = len(graph.spliced)
        if context.workers is not None and (self.prefix == "dense" or context.batches is None):
            self._elsewhere(context.workers, graph, context)
        else:
            self._here(graph, context)
        context.progress("converting layers", len(graph.sites), len(graph.sites))
        return len(graph.spliced) != before

    def _here(self, graph: ModelGraph, context: PassContext) -> None:
        with self._walk(graph, context) as walk:
            for done, site in enumerate(graph.sites):
                context.progress("converting layers", done, len(graph.sites))
                if (layer := _found(site, context)) is None:
                    layer = finish_layer(self.passes, site, graph, context)
                    _keep(site, layer, context)
                else:
                    _take(site, layer, graph, context)
                if site.path in graph.specs:
                    walk.leave(site)
                    graph.splice(site)
                context.drop(site)

    @contextmanager
    def _walk(self, graph: ModelGraph, context: PassContext) -> Iterator[Walk]:
        """The walk through the calibration data, where the passes find it."""
        memory, batches = parse_size(self.memory, "each-layer.memory"), context.batches
        if batches is not None and self.prefix == "converted" and any(OutputGoals in step.uses for step in self.passes):
            with graph.host.goal_walk(batches, memory) as beside:
                context.inputs, context.goals = beside.inputs, beside.goals
                yield beside
        else:
            with graph.host.walk(batches or (), self.prefix, memory) as walk:
                context.inputs = None if batches is None else walk.inputs
                yield walk
        context.inputs = context.goals = None

    def _elsewhere(self, workers: LayerWorkers, graph: ModelGraph, context: PassContext) -> None:
        known = {site.path: _found(site, context) for site in graph.sites}
        fresh = workers.layers(self.passes, [site for site in graph.sites if known[site.path] is None], context)
        for done, site in enumerate(graph.sites):
            context.progress("converting layers", done, len(graph.sites))
            if (layer := known.pop(site.path)) is None:
                layer, seconds = next(fresh)
                _keep(site, layer, context)
                for name, more in seconds.items():
                    context.seconds[name] = context.seconds.get(name, 0.0) + more
            _take(site, layer, graph, context)
            if site.path in graph.specs:
                graph.splice(site)
            context.drop(site)


def finish_layer(passes: Sequence[Pass], site: FeedForward, graph: ModelGraph, context: PassContext) -> FinishedLayer:
    """Runs the passes on the site and judges what comes of it; the spec is in the graph then, and here."""
    notes = len(context.notes)
    run_passes(passes, graph.only((site,)), context)
    spec = graph.specs.get(site.path)
    judge(site, spec, context)
    return FinishedLayer(spec, context.measurements.get(site.path, {}), tuple(context.notes[notes:]))


def _found(site: FeedForward, context: PassContext) -> FinishedLayer | None:
    """What an earlier run finished of the site."""
    return None if context.finished is None else context.finished.find(site)


def _keep(site: FeedForward, layer: FinishedLayer, context: PassContext) -> None:
    if context.finished is not None:
        context.finished.keep(site, layer)


def _take(site: FeedForward, layer: FinishedLayer, graph: ModelGraph, context: PassContext) -> None:
    """Then all is as if the passes had run here."""
    if layer.spec is not None:
        graph.specs[site.path] = layer.spec
    if layer.measured:
        context.measure(site, **layer.measured)
    context.notes.extend(layer.notes)
