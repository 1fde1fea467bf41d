"""A dense model becomes a Mixture-of-Experts model: the whole path in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from moeify.api.aligning import align_converted, dense_opener, opened
from moeify.api.arguments import Data, Example, Factory, Source, check_output
from moeify.api.ending import check_ending, holds_whole
from moeify.api.models import save
from moeify.api.planning import Ready, prepare, registry
from moeify.api.spreading import check_spread, spread
from moeify.data.calls import batches_digest
from moeify.data.data_set import DataSet
from moeify.errors import ConversionError, UsageError
from moeify.export.folder import package_versions
from moeify.export.journal import Journal, journal_beside
from moeify.pipeline.configure import Settings, configure
from moeify.pipeline.context import Progress, no_progress
from moeify.pipeline.memory import frugality
from moeify.pipeline.plan import Plan
from moeify.pipeline.recipe import Recipe
from moeify.pipeline.report import Report
from moeify.splice.eager_host import EagerHost

if TYPE_CHECKING:
    from moeify.training.alignment import Alignment


@dataclass(frozen=True, eq=False)
class Conversion:
    """A finished conversion: the model (the user's class, in eval mode), what was done, and the folder if one was written.

    resumed: how many layers an earlier run that was ended early had finished.
    """

    model: nn.Module
    report: Report
    recipe: Recipe
    folder: Path | None = None
    resumed: int = 0


def convert(
    source: Source,
    output: str | Path | None = None,
    *,
    recipe: str | Path | Recipe = "emoe",
    experts: int | None = None,
    top_k: int | None = None,
    active: float | None = None,
    layers: str | None = None,
    calibrate: Data | None = None,
    tokens: int | None = None,
    align: Alignment | None = None,
    align_on: Data | None = None,
    settings: Settings = (),
    factory: Factory | None = None,
    example: Example | None = None,
    export: Sequence[str] = ("torch",),
    seed: int | None = None,
    dtype: str = "fp32",
    device: str = "cpu",
    force: bool = False,
    resume: bool = False,
    allow_pickle: bool = False,
    workers: int | None = None,
    cluster: str | None = None,
    progress: Progress = no_progress,
    planned: Callable[[Plan], None] | None = None,
) -> Conversion:
    """Converts a dense model into a Mixture-of-Experts model.

    A module in memory is rewritten in place. recipe: a preset's name, a TOML file or a Recipe; experts, top_k, active (the
    largest active fraction of each FFN), layers, tokens, seed and settings change its options. calibrate: data that passes
    may look at, several files or names in a list are mixed; without it the conversion goes by the weights alone. align: trains
    the experts at the end towards what the dense model says to the calibration data (`moeify.Alignment(minutes=10)`), and to
    those of align_on, which no pass looks at. output: a folder that appears whole or not at all; `force` allows replacing one.
    export: "torch" (always there), "onnx" (OUTPUT/model.onnx) and "hf" (OUTPUT/hf, a stock checkpoint). resume: go on after the
    last layer that a run of the same conversion had finished when it was ended early, if there was one; the result is the same.
    allow_pickle: unpickles a module
    of other classes than torch.nn's, which runs what the file says.
    workers: so many processes on this machine share what can be split (docs/many-machines.md); cluster: those of a cluster of
    Ray do, by its address as ray.init takes it. The result is that of one process on one thread.
    planned: receives the plan (parameters, memory) once the model is read and before anything is computed or written.

    Raises UsageError for options that do not fit, before anything is loaded where that can be told; InputError,
    ConversionError and OutputError later.
    """
    plan = configure(
        recipe, experts=experts, top_k=top_k, active=active, layers=layers, tokens=tokens, settings=settings, seed=seed
    )
    check_ending(source, output, calibrate, align, align_on, export, dtype=dtype, device=device)
    check_spread(workers, cluster, source, plan, calibrate, factory=factory, device=device)
    if output is not None:
        check_output(Path(output), source, force=force)
    with _journal(source, output, resume=resume) as journal:
        progress("loading and tracing", 0, None)
        ready = prepare(
            source, plan, calibrate, tokens, factory=factory, example=example, dtype=dtype, device=device,
            allow_pickle=allow_pickle, to_disk=output is not None and not holds_whole(export),
            aligned=align is not None,
        )  # fmt: skip
        if "hf" in export:
            from moeify.export.hf.writing import check_source

            check_source(ready.graph.model)
        if planned is not None:
            planned(ready.plan)
        more = None if align_on is None else opened(align_on, ready.host)
        if journal is not None:
            journal.begin(_key(ready, plan, align, more, dtype, device), resume=resume)
            ready.host.shelf = journal.folder
        graph = ready.graph
        dense = dense_opener(source, align, factory=factory, dtype=dtype, device=device, allow_pickle=allow_pickle)
        with frugality(ready.plan.weights, ready.plan.peak_memory, streamed=journal is not None):
            with spread(workers, cluster, source, ready, factory=factory, dtype=dtype, allow_pickle=allow_pickle) as others:
                report = ready.pipeline.run(
                    graph, ready.data, seed=plan.seed, progress=progress, finished=journal,
                    checkpoint=ready.checkpoints.open, workers=others,
                )  # fmt: skip
            report = replace(report, notes=(*ready.notes, *report.notes), data=ready.describe_data())
            _check_runs(ready.host)
            if align is not None and calibrate is not None:
                state = None if journal is None else journal.alignment
                report = align_converted(ready.host, report, align, calibrate, more, dense, state=state, progress=progress)
        folder = None
        if output is not None:
            explicit = plan.explicit(registry())
            folder = save(graph, output, report=report, recipe=explicit, export=export, force=force, progress=progress)
    return Conversion(graph.model, report, plan, folder, 0 if journal is None else journal.resumed)


@contextmanager
def _journal(source: Source, output: str | Path | None, *, resume: bool) -> Iterator[Journal | None]:
    """Where finished layers are kept; nowhere for a model in memory, which nothing tells from another."""
    if output is None or isinstance(source, nn.Module):
        if resume:
            raise UsageError("resume: goes on with a conversion of a model on disk to a folder: give both as paths")
        yield None
        return
    with journal_beside(Path(output)) as journal:
        yield journal


def _key(ready: Ready, plan: Recipe, align: Alignment | None, more: DataSet | None, dtype: str, device: str) -> dict[str, Any]:
    """All that the finished layers depend on."""
    return {
        "model": asdict(ready.host.loaded.source),
        "recipe": plan.explicit(registry()).to_toml(),
        "alignment": None if align is None else asdict(align),
        "calibration data": ready.identify_data(),
        "alignment data": None if more is None else more.identity(),
        "example": batches_digest([ready.host.example]),
        "number type and device": [dtype, device],
        "other checkpoints": ready.checkpoints.digests,
        "package versions": package_versions(),
    }


def _check_runs(host: EagerHost) -> None:
    """One forward of the converted model, in the state of tracing. Raises ConversionError where the model's own code trips over
    what was replaced."""
    from moeify.frontend.trace_check import run_eager
    from moeify.frontend.trace_state import tracing_state

    try:
        with tracing_state(host.model):
            run_eager(host.model, host.example)
    except Exception as error:  # what a user's forward raises is open
        raise ConversionError(
            f"the converted {type(host.model).__name__} does not run ({type(error).__name__}: {error}): its own code uses a "
            "part of a feed-forward network that was replaced; leave those networks out with --layers"
        ) from error
