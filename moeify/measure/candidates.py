"""Several models on the same batches: each batch is read once, and every output is compared with the dense one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from torch import Tensor, nn

from moeify.errors import InputError
from moeify.ir.model_graph import Batch
from moeify.layers.moe_layer import MoELayer
from moeify.measure.divergence import DivergenceSum
from moeify.measure.evaluation import Score
from moeify.measure.load import LoadMeter, metered
from moeify.measure.nulls import Null
from moeify.measure.outputs import finite, main_output, run, visible, visible_outputs
from moeify.measure.perplexity import PerplexitySum
from moeify.measure.substitute import computed_by

#: Receives (task, done, total or None).
Progress = Callable[[str, int, int | None], None]


@dataclass
class Candidate:
    """A model within a context (a null in its layers, a meter at them), and what is being added up about it."""

    name: str
    what: str
    model: nn.Module
    within: Callable[[Batch], AbstractContextManager[object]] = lambda batch: nullcontext()
    perplexity: PerplexitySum = field(default_factory=PerplexitySum)
    divergence: DivergenceSum = field(default_factory=DivergenceSum)

    def output(self, batch: Batch) -> tuple[str, Tensor]:
        """The main output and its name. Raises ConversionError where it is not finite, InputError where the model fails."""
        with self.within(batch):
            name, tensor = main_output(run(self.model, batch))
        return name, finite(tensor, name, self.name)


def converted(model: nn.Module, layers: Mapping[str, MoELayer], meter: LoadMeter) -> Candidate:
    """The converted model itself, its choices counted by the meter."""

    def within(batch: Batch) -> AbstractContextManager[object]:
        meter.shown = visible(batch)
        return metered(layers, meter)

    return Candidate("converted", "the converted model", model, within)


def nulled(model: nn.Module, layers: Mapping[str, MoELayer], null: Null) -> Candidate:
    """The converted model with the null in its layers."""

    def within(batch: Batch) -> AbstractContextManager[object]:
        if null.meter is not None:
            null.meter.shown = visible(batch)
        return computed_by(layers, null.compute)

    return Candidate(null.name, null.what, model, within)


def run_all(
    dense: Candidate | None,
    others: Iterable[Candidate],
    batches: Iterable[Batch],
    language: bool,
    report: Callable[[int], None],
) -> int:
    """Runs all candidates on every batch and adds up; gives the number of batches. Two outputs are alive at a time.

    language: outputs are next-token logits. report: receives the number of batches done. Raises InputError for no batch.
    """
    others, done = tuple(others), 0
    for batch in batches:
        reference = None if dense is None else dense.output(batch)
        if dense is not None and reference is not None and language:
            dense.perplexity.add(reference[1], batch)
        for candidate in others:
            name, tensor = candidate.output(batch)
            if language:
                candidate.perplexity.add(tensor, batch)
            if reference is not None:
                candidate.divergence.logits = language
                candidate.divergence.add(reference[1], tensor, name, visible_outputs(batch))
        done += 1
        report(done)
    if not done:
        raise InputError("the data leaves no batch to score; give more of it")
    return done


def score(candidate: Candidate, language: bool, compared: bool, active_fraction: float | None) -> Score:
    """What was added up about the candidate. Raises InputError where nothing was."""
    return Score(
        candidate.name,
        candidate.what,
        active_fraction,
        candidate.perplexity.result() if language else None,
        candidate.divergence.result() if compared else None,
    )
