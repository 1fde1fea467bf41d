"""A pipeline: passes in order, checked when it is built."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moeify.ir.facts import CalibrationData
from moeify.ir.model_graph import Batch, ModelGraph
from moeify.pipeline.context import PassContext, Progress, no_progress
from moeify.pipeline.contract import Pass
from moeify.pipeline.order import check_order
from moeify.pipeline.report import Report, make_report
from moeify.pipeline.running import run_passes, skipped


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order in which they run.

    Raises UsageError when a pass needs a fact that no earlier one gives.
    """

    passes: tuple[Pass, ...]

    def __post_init__(self) -> None:
        check_order(self.passes, frozenset({CalibrationData}))

    def run(
        self, graph: ModelGraph, data: Iterable[Batch] | None = None, *, seed: int = 0, progress: Progress = no_progress
    ) -> Report:
        """Runs every pass on the graph; specs that no EachLayer has spliced are spliced at the end.

        data: re-iterable batches of model inputs for calibration; without them, passes that take data are left out.
        seed: the same seed gives the same result. Raises UsageError where a pass needs data that is absent,
        ConversionError where a pass cannot keep its promise.
        """
        self.check(with_data=data is not None)
        context = PassContext(batches=data, seed=seed, progress=progress)
        if data is not None:
            context.put(None, CalibrationData())
        for step in flatten(self.passes):
            if skipped(step, context):
                context.notes.append(f"no calibration data: {step.name} was left out, the conversion goes by the weights alone")
        run_passes(self.passes, graph, context)
        for site in graph.sites:
            if site.path in graph.specs:
                graph.splice(site)
        return make_report(graph, context)

    def check(self, *, with_data: bool) -> None:
        """Raises UsageError where a pass needs facts that no other gives, with or without calibration data."""
        check_order(self.passes, frozenset({CalibrationData}) if with_data else frozenset(), with_data)


def flatten(passes: Iterable[Pass]) -> list[Pass]:
    """All passes, those inside EachLayer included, in order."""
    found: list[Pass] = []
    for step in passes:
        found.append(step)
        found.extend(flatten(getattr(step, "passes", ())))
    return found
