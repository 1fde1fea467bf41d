"""A dense model becomes a Mixture-of-Experts model: the whole path in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from moeify.api.arguments import Data, Example, Factory, Source, check_exports, check_output
from moeify.api.models import save
from moeify.api.planning import prepare, registry
from moeify.errors import ConversionError
from moeify.pipeline.configure import Settings, configure
from moeify.pipeline.context import Progress, no_progress
from moeify.pipeline.recipe import Recipe
from moeify.pipeline.report import Report
from moeify.splice.eager_host import EagerHost


@dataclass(frozen=True, eq=False)
class Conversion:
    """A finished conversion: the model (the user's class, in eval mode), what was done, and the folder if one was written."""

    model: nn.Module
    report: Report
    recipe: Recipe
    folder: Path | None = None


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
    settings: Settings = (),
    factory: Factory | None = None,
    example: Example | None = None,
    export: Sequence[str] = ("torch",),
    seed: int | None = None,
    dtype: str = "fp32",
    device: str = "cpu",
    force: bool = False,
    allow_pickle: bool = False,
    progress: Progress = no_progress,
) -> Conversion:
    """Converts a dense model into a Mixture-of-Experts model.

    A module in memory is rewritten in place. recipe: a preset's name, a TOML file or a Recipe; experts, top_k, active (the
    largest active fraction of each FFN), layers, tokens, seed and settings change its options. calibrate: data that passes
    may look at; without it the conversion goes by the weights alone. output: a folder that appears whole or not at all;
    `force` allows replacing one. export: "torch" (always there) and "onnx" (OUTPUT/model.onnx).
    allow_pickle: unpickles a module of other classes than torch.nn's, which runs what the file says.

    Raises UsageError for options that do not fit, before anything is loaded where that can be told; InputError,
    ConversionError and OutputError later.
    """
    plan = configure(
        recipe, experts=experts, top_k=top_k, active=active, layers=layers, tokens=tokens, settings=settings, seed=seed
    )
    check_exports(export, output, dtype=dtype, device=device)
    if output is not None:
        check_output(Path(output), source, force=force)
    progress("loading and tracing", 0, None)
    ready = prepare(
        source, plan, calibrate, tokens, factory=factory, example=example, dtype=dtype, device=device, allow_pickle=allow_pickle
    )
    graph, host = ready.graph, ready.host
    report = ready.pipeline.run(graph, ready.data, seed=plan.seed, progress=progress)
    report = replace(report, notes=(*ready.notes, *report.notes), data=ready.describe_data())
    _check_runs(host)
    folder = None
    if output is not None:
        explicit = plan.explicit(registry())
        folder = save(graph, output, report=report, recipe=explicit, export=export, force=force, progress=progress)
    return Conversion(graph.model, report, plan, folder)


def _check_runs(host: EagerHost) -> None:
    """One forward of the converted model. Raises ConversionError where the model's own code trips over what was replaced."""
    from moeify.frontend.trace_check import run_eager

    try:
        run_eager(host.model, host.example)
    except Exception as error:  # what a user's forward raises is open
        raise ConversionError(
            f"the converted {type(host.model).__name__} does not run ({type(error).__name__}: {error}): its own code uses a "
            "part of a feed-forward network that was replaced; leave those networks out with --layers"
        ) from error
