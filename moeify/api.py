"""The one place where everything meets: load, trace, run a pipeline, splice, save, evaluate, export."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from moeify.errors import InputError, UsageError
from moeify.ir.facts import FeedForwards
from moeify.ir.model_graph import Batch, ModelGraph
from moeify.pipeline.configure import Settings, configure
from moeify.pipeline.context import Progress, no_progress
from moeify.pipeline.each_layer import EachLayer
from moeify.pipeline.inspection import Inspection, layer_rows, site_rows, sizes_text
from moeify.pipeline.pipeline import Pipeline, flatten
from moeify.pipeline.plan import Plan, foresee, make_plan
from moeify.pipeline.recipe import Recipe
from moeify.pipeline.registry import Registry, make_registry
from moeify.pipeline.report import Report

if TYPE_CHECKING:
    from moeify.export.onnx.report import OnnxReport
    from moeify.measure.evaluation import Evaluation

#: A model: a path (Hugging Face folder, GGUF file, state_dict with a factory), or a module in memory.
Source = str | Path | nn.Module

#: Calibration or evaluation data: a file, `pkg.mod:callable`, or batches in memory.
Data = str | Path | Callable[[], Iterable[Batch]] | Iterable[Batch]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EXPORTS = ("torch", "onnx")


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


def open_model(
    source: Source,
    *,
    factory: str | Callable[[], nn.Module] | None = None,
    example: str | Path | Batch | None = None,
    dtype: str = "fp32",
    device: str = "cpu",
) -> ModelGraph:
    """The model, loaded and traced, ready for passes; `graph.sites` is filled by FindFeedForward.

    source: a Hugging Face folder (safetensors), a GGUF file, a state_dict (.pt, .safetensors) with `factory`, or a module.
    factory: a callable without arguments that returns the module, or its name `pkg.mod:callable`.
    example: model inputs (a tuple of arguments or a dict of keyword arguments), a file of them, or `pkg.mod:callable`;
        not needed where the model's config tells. dtype: fp32 or bf16. device: a torch device.

    Raises InputError for what cannot be read or traced, UsageError for wrong arguments.
    """
    from moeify.frontend.load_model import load_model
    from moeify.splice.eager_host import EagerHost

    loaded = load_model(source, factory=factory, example=example, dtype=_dtype(dtype), device=_device(device))
    return ModelGraph(EagerHost(loaded))


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
    factory: str | Callable[[], nn.Module] | None = None,
    example: str | Path | Batch | None = None,
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
    _check_exports(export, output)
    if output is not None:
        from moeify.export.atomic import check_target

        check_target(Path(output), force=force)
    from moeify.splice.eager_host import EagerHost

    progress("loading and tracing", 0, None)
    graph = open_model(source, factory=factory, example=example, dtype=dtype, device=device)
    host = graph.host
    assert isinstance(host, EagerHost)
    _foresee_all(pipeline, graph)
    data = None
    if calibrate is not None:
        data = _open_data(calibrate, host.loaded.tokenizer, host.example, _calibration_tokens(pipeline))
    report = pipeline.run(graph, data, seed=plan.seed, progress=progress)
    report = replace(report, notes=(*host.loaded.notes, *host.traced.notes, *report.notes))
    if not report.layers:
        raise InputError(_nothing_found(graph))
    folder = None
    if output is not None:
        explicit = plan.explicit(registry())
        folder = save(graph, output, report=report, recipe=explicit, export=export, force=force, progress=progress)
    return Conversion(graph.model, report, plan, folder)


def save(
    graph: ModelGraph,
    output: str | Path,
    *,
    report: Report,
    recipe: Recipe | None = None,
    export: Sequence[str] = ("torch",),
    force: bool = False,
    progress: Progress = no_progress,
) -> Path:
    """Writes a converted model as a folder (format 1) that `load` gives back; returns the folder.

    Raises OutputError where it cannot be written (nothing is left behind), ConversionError where an ONNX file does not
    agree with the eager model.
    """
    from moeify.export.folder import LayerEntry, save_folder
    from moeify.splice.eager_host import EagerHost

    host = graph.host
    assert isinstance(host, EagerHost)
    entries = {
        site.path: LayerEntry(rewrite=site.rewrite, config=host.layers[site.path].config)
        for site in graph.sites
        if site.path in host.layers
    }
    text = "" if recipe is None else recipe.to_toml()

    def also(folder: Path) -> None:
        if "onnx" in export:
            from moeify.export.onnx.exporting import export_onnx

            progress("exporting ONNX", 0, None)
            export_onnx(host.model, host.example, folder / "model.onnx")

    progress("writing", 0, None)
    return save_folder(host.model, entries, host.loaded, text, report.to_json(), Path(output), force=force, also=also)


def load(
    folder: str | Path,
    *,
    factory: str | Callable[[], nn.Module] | None = None,
    dtype: str | None = None,
    device: str = "cpu",
) -> nn.Module:
    """The converted model of an output folder, in eval mode.

    factory: needed again where the model came as a state_dict. Raises InputError for a folder that is damaged, newer
    than this version, or none of ours.
    """
    from moeify.export.folder import load_folder

    return load_folder(
        Path(folder), factory=factory, dtype=None if dtype is None else _dtype(dtype), device=_device(device)
    ).model


def evaluate(
    folder: str | Path,
    data: Data,
    *,
    dense: Source | None = None,
    nulls: bool = False,
    tokens: int | None = None,
    factory: str | Callable[[], nn.Module] | None = None,
    example: str | Path | Batch | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> Evaluation:
    """Measures a converted model on data: perplexity, distance from the dense model, active fraction, load of the experts.

    dense: the model before conversion, for what compares with it. nulls: adds all experts on, oracle routing, random
    partition and a static mask. tokens: stop early. Raises InputError for what cannot be read.
    """
    from moeify.export.folder import load_folder
    from moeify.frontend.load_model import load_model
    from moeify.measure.evaluate import evaluate_model

    found = load_folder(Path(folder), factory=factory, device=_device(device))
    batch = _example(found.model, found.tokenizer, example)
    before = None
    if dense is not None:
        again = factory if found.manifest.source.kind == "state-dict" else None
        loaded = load_model(dense, factory=again, example=batch, dtype=found.manifest.dtype, device=device)
        before = loaded.model
    batches = _open_data(data, found.tokenizer, batch, tokens)
    return evaluate_model(
        found.model, batches, dense=before, tokenizer=found.tokenizer, nulls=nulls, seed=seed, progress=progress
    )


def export(
    folder: str | Path,
    output: str | Path,
    *,
    to: str = "onnx",
    factory: str | Callable[[], nn.Module] | None = None,
    example: str | Path | Batch | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> OnnxReport:
    """Writes a converted model as an ONNX file that stock ONNX Runtime runs; it is compared with the eager model first.

    Raises UsageError for another format than onnx, InputError, ConversionError and OutputError as their words say.
    """
    if to != "onnx":
        raise UsageError(f"cannot export to {to!r}: known is onnx")
    from moeify.export.atomic import check_target
    from moeify.export.folder import load_folder
    from moeify.export.onnx.exporting import export_onnx

    check_target(Path(output), force=force)
    found = load_folder(Path(folder), factory=factory)
    progress("exporting ONNX", 0, None)
    return export_onnx(found.model, _example(found.model, found.tokenizer, example), Path(output), force=force)


def inspect(
    source: Source,
    *,
    factory: str | Callable[[], nn.Module] | None = None,
    example: str | Path | Batch | None = None,
) -> Inspection:
    """The feed-forward networks of a dense model, or the MoE layers of a converted folder or an ONNX file.

    Raises InputError for what cannot be read.
    """
    from moeify.frontend.sniff import sniff

    kind = "module" if isinstance(source, nn.Module) else sniff(Path(source))
    if kind == "onnx":
        return _inspect_onnx(Path(str(source)))
    if kind == "converted":
        from moeify.export.manifest import read_manifest

        entries = read_manifest(Path(str(source))).layers
        return Inspection("converted", layer_rows((path, e.config, e.rewrite.way) for path, e in entries.items()))
    graph = open_model(source, factory=factory, example=example)
    sites, refusals = graph.host.find()
    return Inspection("dense", site_rows(sites), refusals)


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
    factory: str | Callable[[], nn.Module] | None = None,
    example: str | Path | Batch | None = None,
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
    return make_plan(pipeline.passes, graph, parameters, _dtype(dtype).itemsize, alive)


def _open_data(source: Data, tokenizer: Any, example: Batch, tokens: int | None) -> Iterable[Batch]:
    from moeify.data.open_data import open_data

    return open_data(source, tokenizer=tokenizer, example=example, tokens=tokens)


def _example(model: nn.Module, tokenizer: Any, example: str | Path | Batch | None) -> Batch:
    from moeify.frontend.example_inputs import example_inputs
    from moeify.frontend.load_example import read_example

    device = str(next(model.parameters()).device)
    return example_inputs(model, tokenizer) if example is None else read_example(example, device)


def _inspect_onnx(path: Path) -> Inspection:
    from moeify.export.onnx.inspecting import onnx_layers

    rows = tuple(
        {
            "path": layer.name,
            "kind": "gated" if layer.shape.gated else "two-matrix",
            "activation": layer.shape.activation,
            "hidden": layer.hidden,
            "experts": len(layer.sizes),
            "sizes": sizes_text(layer.sizes),
            "shared": layer.offsets[0],
            "gate": layer.shape.gate_rule,
            "top_k": layer.k,
        }
        for layer in onnx_layers(path)
    )
    return Inspection("onnx", rows)


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


def _check_exports(export: Sequence[str], output: str | Path | None) -> None:
    for name in export:
        if name not in EXPORTS:
            raise UsageError(f"unknown export {name!r}: known are {', '.join(EXPORTS)}")
    if output is None and "onnx" in export:
        raise UsageError("exporting ONNX needs an output folder")


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise UsageError(f"dtype is {name!r}: choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _device(name: str) -> str:
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise UsageError(f"device is {name!r}: choose cpu, or cuda where torch has it") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is 'cuda', but torch sees no CUDA device here: choose cpu")
    return name
