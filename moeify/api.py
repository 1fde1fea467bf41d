"""The one place where everything meets: load, trace, run a pipeline, splice, save, evaluate, export."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moeify.errors import InputError, UsageError
from moeify.ir.model_graph import Batch, ModelGraph
from moeify.pipeline.context import Progress, no_progress
from moeify.pipeline.pipeline import Pipeline, flatten
from moeify.pipeline.recipe import Recipe, load_recipe
from moeify.pipeline.registry import Registry, make_registry
from moeify.pipeline.report import Report

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
    settings: Mapping[str, Any] | Sequence[tuple[str, str, Any]] = (),
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

    A module in memory is rewritten in place. recipe: a preset's name, a TOML file or a Recipe. experts, top_k, active
    (the largest active fraction allowed per FFN), layers, tokens and settings ({"pass.option": value}) change options of the recipe.
    calibrate: data that passes may look at; without it the conversion goes by the weights alone. output: a folder that appears whole or
    not at all; `force` allows replacing one. export: "torch" (always) and "onnx" (OUTPUT/model.onnx).

    Raises UsageError before anything is loaded where options do not fit; InputError, ConversionError and OutputError later.
    """
    plan = configure(
        recipe, experts=experts, top_k=top_k, active=active, layers=layers, tokens=tokens, settings=settings, seed=seed
    )
    pipeline = plan.build(registry())
    pipeline.check(with_data=calibrate is not None)
    _check_exports(export, output)
    if output is not None:
        from moeify.export.atomic import check_target

        check_target(Path(output), force=force)
    progress("loading and tracing", 0, None)
    graph = open_model(source, factory=factory, example=example, dtype=dtype, device=device)
    data = None if calibrate is None else _open_data(calibrate, graph, _calibration_tokens(pipeline))
    report = pipeline.run(graph, data, seed=plan.seed, progress=progress)
    if not report.layers:
        raise InputError(_nothing_found(graph))
    folder = None
    if output is not None:
        explicit = replace(plan.explicit(registry()))
        folder = save(graph, output, report=report, recipe=explicit, export=export, force=force, progress=progress)
    return Conversion(graph.model, report, plan, folder)


def configure(
    recipe: str | Path | Recipe = "emoe",
    *,
    experts: int | None = None,
    top_k: int | None = None,
    active: float | None = None,
    layers: str | None = None,
    tokens: int | None = None,
    settings: Mapping[str, Any] | Sequence[tuple[str, str, Any]] = (),
    seed: int | None = None,
) -> Recipe:
    """The recipe with those options set. Raises UsageError where they contradict each other or the recipe."""
    if active is not None and top_k is not None:
        raise UsageError("--active and --top-k both set the budget: give one of them")
    plan = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    wanted: list[tuple[str, str, Any]] = [
        ("cluster-neurons", "experts", experts),
        ("insert-router", "top_k", top_k),
        ("insert-router", "active", active),
        ("find-feed-forward", "layers", layers),
        ("calibrate", "tokens", tokens),
    ]
    if active is not None:
        plan = plan.set("insert-router", "top_k", None)
    if top_k is not None:
        plan = plan.set("insert-router", "active", None)
    for name, option, value in wanted:
        plan = plan if value is None else plan.set(name, option, value)
    pairs = [(*_target(key), value) for key, value in settings.items()] if isinstance(settings, Mapping) else settings
    for name, option, value in pairs:
        plan = plan.set(name, option, value)
    if seed is not None and seed < 0:
        raise UsageError(f"seed is {seed}: give a whole number from 0")
    return plan if seed is None else replace(plan, seed=seed)


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
            from moeify.export.onnx_export import export_onnx

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


def _open_data(source: Data, graph: ModelGraph, tokens: int | None) -> Iterable[Batch]:
    from moeify.data.open_data import open_data
    from moeify.splice.eager_host import EagerHost

    host = graph.host
    assert isinstance(host, EagerHost)
    return open_data(source, tokenizer=host.loaded.tokenizer, example=host.example, tokens=tokens)


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


def _target(key: str) -> tuple[str, str]:
    name, dot, option = key.partition(".")
    if not dot:
        raise UsageError(f"setting {key!r} is not of the form pass.option, such as cluster-neurons.experts")
    return name, option


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
