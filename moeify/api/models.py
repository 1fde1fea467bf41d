"""Models in and out: opened for passes, saved as a folder, loaded from one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from moeify.api.arguments import Example, Factory, Source, check_exports, device_of, dtype_of
from moeify.ir.model_graph import ModelGraph
from moeify.pipeline.context import Progress, no_progress
from moeify.pipeline.recipe import Recipe
from moeify.pipeline.report import Report

if TYPE_CHECKING:
    from moeify.layers.moe_layer import MoELayer


def open_model(
    source: Source,
    *,
    factory: Factory | None = None,
    example: Example | None = None,
    dtype: str = "fp32",
    device: str = "cpu",
    allow_pickle: bool = False,
) -> ModelGraph:
    """The model, loaded and traced, ready for passes; `graph.sites` is filled by FindFeedForward.

    source: a Hugging Face folder (safetensors) or a LoRA adapter's, a GGUF file, a state_dict (.pt, .safetensors) with
        `factory`, a pickled module, a torch.export archive (.pt2), or a module in memory.
    allow_pickle: unpickles a module of other classes than torch.nn's, which runs what the file says.
    factory: a callable without arguments that returns the module, or its name `pkg.mod:callable`.
    example: model inputs (a tuple of arguments or a dict of keyword arguments), a file of them, or `pkg.mod:callable`;
        not needed where the model's config or first layer tells. dtype: fp32 or bf16. device: a torch device.

    Raises InputError for what cannot be read or traced, UsageError for wrong arguments.
    """
    from moeify.frontend.load_model import load_model
    from moeify.splice.onnx_host import host_of

    loaded = load_model(
        source,
        factory=factory,
        example=example,
        dtype=dtype_of(dtype),
        device=device_of(device),
        allow_pickle=allow_pickle,
    )
    return ModelGraph(host_of(loaded))


def open_outline(
    source: Source,
    *,
    factory: Factory | None = None,
    example: Example | None = None,
    dtype: str = "fp32",
    device: str = "cpu",
    allow_pickle: bool = False,
) -> ModelGraph:
    """As `open_model`, for those who look at sites and not at weights: none are read where that can be done without.

    Such is a model of `load_outline` that is traced on the meta device; others are opened as ever.
    """
    from moeify.frontend.load_outline import load_outline
    from moeify.splice.eager_host import EagerHost

    kind = dtype_of(dtype)
    if not isinstance(source, nn.Module) and factory is None:
        with suppress(Exception):  # models fail without values in ways of their own; what is wrong itself is said below
            if (loaded := load_outline(source, example, kind)) is not None:
                host = EagerHost(loaded)
                host.find()
                return ModelGraph(host)
    return open_model(source, factory=factory, example=example, dtype=dtype, device=device, allow_pickle=allow_pickle)


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

    Raises OutputError where it cannot be written (nothing is left behind), ConversionError where an ONNX file or a
    stock checkpoint does not agree with the eager model, or no stock class holds it.
    """
    from moeify.export.folder import LayerEntry, save_folder
    from moeify.splice.eager_host import EagerHost
    from moeify.splice.onnx_host import OnnxHost

    check_exports(export, output)
    host = graph.host
    assert isinstance(host, EagerHost)
    entries = {
        site.path: LayerEntry(site.rewrite, host.layers[site.path].config, site.places)
        for site in graph.sites
        if site.path in host.layers
    }
    text = (recipe or Recipe.of(report.passes, report.seed)).to_toml()

    def also(folder: Path) -> None:
        if "onnx" in export or isinstance(host, OnnxHost):
            from moeify.export.onnx.exporting import export_onnx

            progress("exporting ONNX", 0, None)
            export_onnx(host.model, host.example, folder / "model.onnx")
        if "hf" in export:
            from moeify.export.hf.writing import Told, export_hf

            progress("writing the stock checkpoint", 0, None)
            export_hf(host.model, host.example, folder / "hf", tokenizer=host.loaded.tokenizer, told=Told.of(folder))

    progress("writing", 0, None)
    return save_folder(host.model, entries, host.loaded, text, report.to_json(), Path(output), force=force, also=also)


def resave(model: nn.Module, like: str | Path, output: str | Path, *, force: bool = False) -> Path:
    """Writes a model that was loaded from the folder `like`, with what has become of it since: trained, another top-k, other
    experts. Returns the new folder, which `load` gives back.

    Recipe, report and source are those of `like`: they tell of the conversion. Raises UsageError for a model that did not come
    from `like`, InputError where that is damaged, OutputError where the new one cannot be written (nothing is left behind).
    """
    from moeify.export.folder_again import resave_folder

    return resave_folder(model, Path(like), Path(output), force=force)


def load(
    folder: str | Path,
    *,
    factory: Factory | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    allow_pickle: bool = False,
) -> nn.Module:
    """The converted model of an output folder, in eval mode.

    factory: needed again where the model is neither a class of transformers nor of torch.nn classes alone; allow_pickle does
    without it where the model came as a pickle, and runs what that says. Raises InputError for a folder that is damaged, newer
    than this version, or none of ours.
    """
    from moeify.export.folder import load_folder

    return load_folder(
        Path(folder),
        factory=factory,
        dtype=None if dtype is None else dtype_of(dtype),
        device=device_of(device),
        allow_pickle=allow_pickle,
    ).model


def layers_by_site(model: nn.Module) -> Mapping[str, MoELayer]:
    """The MoE layers by the paths of the FFNs that were there before."""
    from moeify.frontend.onnx.model import OnnxModel
    from moeify.layers.budget import moe_layers

    if isinstance(model, OnnxModel):
        return model.layers
    return {path if layer.origin is None else layer.origin.path: layer for path, layer in moe_layers(model).items()}
