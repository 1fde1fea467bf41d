"""A pipeline: passes in order, checked when it is built."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from moeify.data.data_set import DataSet
from moeify.errors import UsageError
from moeify.ir.facts import CalibrationData, Experts, NeuronImportance
from moeify.ir.feed_forward import ReadTensor
from moeify.ir.model_graph import Batch, ModelGraph
from moeify.pipeline.budget import budget_of
from moeify.pipeline.context import PassContext, Progress, no_progress
from moeify.pipeline.contract import Pass
from moeify.pipeline.finished import FinishedLayers
from moeify.pipeline.judging import judge
from moeify.pipeline.layer_nulls import seen_before
from moeify.pipeline.layer_sample import calibration_tokens
from moeify.pipeline.layer_workers import LayerWorkers
from moeify.pipeline.order import check_order
from moeify.pipeline.report import Report, make_report
from moeify.pipeline.running import run_passes

#: Bytes that values alive between two layers may take where they are judged after all passes.
_MEMORY = 1 << 30


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order in which they run.

    Raises UsageError when a pass needs a fact that no earlier one gives.
    """

    passes: tuple[Pass, ...]

    def __post_init__(self) -> None:
        check_order(self.passes, frozenset({CalibrationData}))

    def run(
        self,
        graph: ModelGraph,
        data: Iterable[Batch] | None = None,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
        finished: FinishedLayers | None = None,
        checkpoint: Callable[[str], ReadTensor] | None = None,
        workers: LayerWorkers | None = None,
    ) -> Report:
        """Runs every pass on the graph; specs that no EachLayer has spliced are spliced at the end.

        data: re-iterable batches of model inputs for calibration; without them, passes that take data are left out.
        seed: the same seed gives the same result. finished: where each-layer keeps the layers it has done.
        checkpoint: opens another checkpoint of the same model, for passes that take weights from there. workers: other
        processes for layers that do not hang on each other.
        Raises UsageError where a pass needs data that is absent, ConversionError where a pass cannot keep its promise.
        """
        self.check(with_data=data is not None)
        context = PassContext(
            batches=data, seed=seed, progress=progress, finished=finished, checkpoint=checkpoint, workers=workers,
            looked_at=calibration_tokens(flatten(self.passes)),
        )  # fmt: skip
        if data is not None:
            context.put(None, CalibrationData(data.order if isinstance(data, DataSet) else ()))
        context.notes.extend(self.left_out(with_data=data is not None))
        run_passes(self.passes, graph, context)
        _splice_rest(graph, context)
        report = make_report(graph, context)
        notes = (*report.notes, *seen_before(report.nulls.values()))
        return replace(report, notes=notes, passes=self.passes, seed=seed, budget=budget_of(flatten(self.passes)))

    def left_out(self, with_data: bool) -> list[str]:
        """A note for each pass that a run without data leaves out."""
        left = [] if with_data else [step.name for step in flatten(self.passes) if CalibrationData in step.needs]
        return [f"no calibration data: {name} was left out, the conversion goes by the weights alone" for name in left]

    def check(self, *, with_data: bool) -> None:
        """Raises UsageError where a pass needs facts that no other gives, with or without calibration data."""
        check_order(self.passes, frozenset({CalibrationData}) if with_data else frozenset(), with_data)


def _splice_rest(graph: ModelGraph, context: PassContext) -> None:
    """What no each-layer has spliced; judged as there."""
    left = [site for site in graph.sites if site.path in graph.specs]
    if left and context.batches is not None:
        with graph.host.walk(context.batches, "converted", _MEMORY) as walk:
            context.inputs = walk.inputs
            for site in left:
                judge(site, graph.specs[site.path], context)
                graph.splice(site)
            context.inputs = None
    else:
        for site in left:
            graph.splice(site)


def check_experts(pipeline: Pipeline) -> None:
    """Raises UsageError where several passes would make the experts, a router is to choose more than there are, or experts by
    text groups are not as many as the groups."""
    steps = flatten(pipeline.passes)
    makers = [step for step in steps if Experts in step.gives and Experts not in step.needs]  # those that need some change them
    if len(makers) > 1:
        names = " and ".join(step.name for step in makers)
        raise UsageError(f"{names} each make experts of the same FFN: keep one of them in the recipe")
    _check_groups(steps)
    counts = [count for step in steps if isinstance(count := getattr(step, "experts", None), int)]
    for step in steps:
        top_k = getattr(step, "top_k", None)
        if isinstance(top_k, int) and counts and top_k > counts[-1]:
            raise UsageError(f"{step.name}.top_k is {top_k} but there are {counts[-1]} experts: choose 1 to {counts[-1]}")


def _check_groups(steps: list[Pass]) -> None:
    groups = [(step.name, getattr(step, "groups", None)) for step in steps if NeuronImportance in step.gives]
    for step in steps:
        experts = getattr(step, "experts", None)
        if groups and NeuronImportance in step.needs and isinstance(experts, int) and experts != groups[0][1]:
            raise UsageError(
                f"{step.name}.experts is {experts} but {groups[0][0]}.groups is {groups[0][1]}, and an expert is made of each "
                "group: set both to the same number"
            )


def flatten(passes: Iterable[Pass]) -> list[Pass]:
    """All passes, those inside EachLayer included, in order."""
    found: list[Pass] = []
    for step in passes:
        found.append(step)
        found.extend(flatten(getattr(step, "passes", ())))
    return found
