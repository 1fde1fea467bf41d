"""The loop over layers: analyse one site, rewrite it, splice it, go on with what the converted model then computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from moeify.errors import UsageError
from moeify.ir.facts import Fact, FeedForwards
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.pipeline.context import PassContext
from moeify.pipeline.contract import Pass
from moeify.pipeline.finished import FinishedLayer
from moeify.pipeline.judging import judge
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
    and its passes are not run again.
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
        memory = parse_size(self.memory, "each-layer.memory")
        before = len(graph.spliced)
        with graph.host.walk(context.batches or (), self.prefix, memory) as walk:
            context.inputs = None if context.batches is None else walk.inputs
            for done, site in enumerate(graph.sites):
                context.progress("converting layers", done, len(graph.sites))
                if not _taken_over(site, graph, context):
                    self._run_passes(site, graph, context)
                if site.path in graph.specs:
                    walk.leave(site)
                    graph.splice(site)
                context.drop(site)
            context.progress("converting layers", len(graph.sites), len(graph.sites))
            context.inputs = None
        return len(graph.spliced) != before

    def _run_passes(self, site: FeedForward, graph: ModelGraph, context: PassContext) -> None:
        notes = len(context.notes)
        run_passes(self.passes, graph.only((site,)), context)
        judge(site, graph.specs.get(site.path), context)
        if context.finished is not None:
            measured, said = context.measurements.get(site.path, {}), tuple(context.notes[notes:])
            context.finished.keep(site, FinishedLayer(graph.specs.get(site.path), measured, said))


def _taken_over(site: FeedForward, graph: ModelGraph, context: PassContext) -> bool:
    """Whether an earlier run had finished the site; then all is as if its passes had run."""
    layer = None if context.finished is None else context.finished.find(site)
    if layer is None:
        return False
    if layer.spec is not None:
        graph.specs[site.path] = layer.spec
    if layer.measured:
        context.measure(site, **layer.measured)
    context.notes.extend(layer.notes)
    return True
