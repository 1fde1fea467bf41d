"""A dense model becomes a Mixture-of-Experts model: the whole path in one call, and what it would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from moeify.api.arguments import Data, Example, Factory, Source, check_exports, dtype_of, open_batches
from moeify.api.models import open_model, save
from moeify.errors import ConversionError, InputError, UsageError
from moeify.ir.facts import FeedForwards
from moeify.ir.model_graph import ModelGraph
from moeify.pipeline.configure import Settings, configure
from moeify.pipeline.context import Progress, no_progress
from moeify.pipeline.each_layer import EachLayer
from moeify.pipeline.pipeline import Pipeline, flatten
from moeify.pipeline.plan import Plan, foresee, make_plan
from moeify.pipeline.recipe import Recipe
from moeify.pipeline.registry import Registry, make_registry
from moeify.pipeline.report import Report
from moeify.splice.eager_host import EagerHost


@dataclass(frozen=True, eq=False)
class Conversion:
    """A finished conversion: the model (the user's class, in eval mode), what was done, and the folder if one was written."""

    model: nn.Module
    report: Report
    recipe: Recipe
    folder: Path | None = None


def registry() -> Registry:
    """All passes: those of moeify_passes, EachLayer, and those of installed plug-ins."""
    from moeify_passes import PASSES

    return make_registry(PASSES)


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
    progress: Progress = no_progress,
) -> Conversion:
    """Converts a dense model into a Mixture-of-Experts model.

    A module in memory is rewritten in place. recipe: a preset's name, a TOML file or a Recipe; experts, top_k, active (the
    largest active fraction of each FFN), layers, tokens, seed and settings change its options. calibrate: data that passes
    may look at; without it the conversion goes by the weights alone. output: a folder that appears whole or not at all;
    `force` allows replacing one. export: "torch" (always there) and "onnx" (OUTPUT/model.onnx).

    Raises UsageError for options that do not fit, before anything is loaded where that can be told; InputError,
    ConversionError and OutputError later.
    """
    plan = configure(
        recipe, experts=experts, top_k=top_k, active=active, layers=layers, tokens=tokens, settings=settings, seed=seed
    )
    pipeline = _build(plan, calibrate)
    check_exports(export, output)
    if output is not None:
        from moeify.export.atomic import check_target

        check_target(Path(output), force=force)
    progress("loading and tracing", 0, None)
    graph = open_model(source, factory=factory, example=example, dtype=dtype, device=device)
    host = graph.host
    assert isinstance(host, EagerHost)
    _foresee_all(pipeline, graph)
    data = None
    if calibrate is not None:
        data = open_batches(calibrate, host.model, host.loaded.tokenizer, host.example, _calibration_tokens(pipeline))
    report = pipeline.run(graph, data, seed=plan.seed, progress=progress)
    report = replace(report, notes=(*host.loaded.notes, *host.traced.notes, *report.notes))
    if not report.layers:
        raise InputError(_nothing_found(graph))
    _check_runs(host)
    folder = None
    if output is not None:
        explicit = plan.explicit(registry())
        folder = save(graph, output, report=report, recipe=explicit, export=export, force=force, progress=progress)
    return Conversion(graph.model, report, plan, folder)


def plan(
    source: Source,
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
    seed: int | None = None,
    dtype: str = "fp32",
    device: str = "cpu",
) -> Plan:
    """What `convert` with the same options would do, without doing it. Raises what `convert` raises before it computes."""
    wanted = configure(
        recipe, experts=experts, top_k=top_k, active=active, layers=layers, tokens=tokens, settings=settings, seed=seed
    )
    pipeline = _build(wanted, calibrate)
    graph = open_model(source, factory=factory, example=example, dtype=dtype, device=device)
    Pipeline(tuple(step for step in pipeline.passes if FeedForwards in step.gives)).run(graph)
    alive = (
        0 if calibrate is None else (_calibration_tokens(pipeline) or 0) * max((s.hidden for s in graph.sites), default=0) * 32
    )
    parameters = sum(p.numel() for p in graph.model.parameters())
    return make_plan(pipeline.passes, graph, parameters, dtype_of(dtype).itemsize, alive)


def _build(plan: Recipe, calibrate: Data | None) -> Pipeline:
    """The pipeline, once everything is checked that can be checked before a model is loaded."""
    from moeify.data.importable import is_importable_name
    from moeify.data.sniff import kind_of

    pipeline = plan.build(registry())
    if not any(step.rewrites for step in flatten(pipeline.passes) if not isinstance(step, EachLayer)):
        raise UsageError(f"recipe {plan.name!r} would change nothing: no pass of it is a rewrite, such as split-experts")
    pipeline.check(with_data=calibrate is not None)
    if isinstance(calibrate, str | Path) and not is_importable_name(str(calibrate)):
        kind_of(Path(calibrate).expanduser())
    return pipeline


def _foresee_all(pipeline: Pipeline, graph: ModelGraph) -> None:
    """Finds the sites, and raises UsageError now where options do not fit one of them: later would be after hours of work."""
    Pipeline(tuple(step for step in pipeline.passes if FeedForwards in step.gives)).run(graph)
    for site in graph.sites:
        foresee(pipeline.passes, site)


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


def _calibration_tokens(pipeline: Pipeline) -> int | None:
    counts = [tokens for step in flatten(pipeline.passes) if isinstance(tokens := getattr(step, "tokens", None), int)]
    return max(counts, default=None)


def _nothing_found(graph: ModelGraph) -> str:
    if graph.refusals:
        first = graph.refusals[0]
        return (
            f"no feed-forward network can be converted; {len(graph.refusals)} refused, the first {first.path}: {first.reason}"
        )
    return "the model has no feed-forward network that moeify knows: run moeify inspect on it"
