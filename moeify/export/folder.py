"""Our output folder, format 1: a converted model that `load_folder` gives back, tensor by tensor.

    OUT/moeify.safetensors   every tensor of the converted model, tied ones once; for a large one several files
    OUT/moeify.json          the manifest: what is there, what made it, how the layers go in (see manifest.py)
    OUT/recipe.toml          the recipe that made it
    OUT/report.json          what was done and measured
    OUT/source/              config, generation config and tokenizer of the dense model; or the module or program without
                             its weights, and the inputs that were assumed for it

What comes of an ONNX file has OUT/model.onnx besides: see onnx_folder.py.

There is no config.json at the top: transformers must not take the folder for a dense model. The bytes depend on
the model alone: no times, no machine.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import moeify
from moeify.errors import InputError, OutputError
from moeify.export.atomic import whole_folder
from moeify.export.folder_skeleton import build_skeleton, read_assumed, read_tokenizer
from moeify.export.folder_weights import load_weights, write_weights
from moeify.export.manifest import NAME, LayerEntry, Manifest, json_text, read_manifest
from moeify.export.onnx_folder import open_onnx_folder, write_rest
from moeify.export.weight_shards import weight_names
from moeify.frontend.load_factory import Factory
from moeify.frontend.loaded import LoadedModel, SourceInfo, file_digest
from moeify.frontend.onnx.model import OnnxModel
from moeify.ir.model_graph import Batch

__all__ = ["LayerEntry", "LoadedFolder", "load_folder", "package_versions", "save_folder", "verify_files", "write_manifest"]


@dataclass(frozen=True, eq=False)
class LoadedFolder:
    """A converted model in eval mode. tokenizer: transformers' own, or None. example: inputs that were assumed, or None.
    budget: the active fraction that the recipe was asked for, else the one of its report; None where nothing tells."""

    model: nn.Module
    manifest: Manifest
    tokenizer: Any | None
    example: Batch | None = None
    budget: float | None = None


def save_folder(
    model: nn.Module,
    layers: Mapping[str, LayerEntry],
    loaded: LoadedModel,
    recipe_text: str,
    report: Mapping[str, Any],
    output: Path,
    *,
    force: bool,
    also: Callable[[Path], None] | None = None,
) -> Path:
    """Writes the converted model; `also` may add files before the manifest is written. Returns `output`.

    layers: by site path, in order of installation. Raises OutputError where the folder exists (without `force`) or cannot be
    written; then it is as it was before.
    """
    if loaded.path is not None:
        check_apart(output, loaded.path)
    with whole_folder(output, force) as folder:
        of_graph = isinstance(model, OnnxModel)  # which `also` writes
        aliases = {} if of_graph else write_weights(model, folder)
        _write(folder / "recipe.toml", recipe_text)
        _write(folder / "report.json", json_text(_finite(report)))
        loaded.save_source(folder / "source")
        if also is not None:
            also(folder)
        if isinstance(model, OnnxModel):
            write_rest(model, folder)
        write_manifest(folder, model, loaded.source, layers, aliases)
    return output


def write_manifest(
    folder: Path, model: nn.Module, source: SourceInfo, layers: Mapping[str, LayerEntry], aliases: Mapping[str, str]
) -> None:
    """moeify.json, over everything else that the folder holds by then."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for name in weight_names(path.name for path in folder.iterdir()):
        (folder / name).chmod((folder / "recipe.toml").stat().st_mode)  # safetensors leaves it to its owner alone
    manifest = Manifest(
        source=source,
        dtype=next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32),
        layers=layers,
        aliases=aliases,
        digests={path.relative_to(folder).as_posix(): file_digest(path) for path in files},
        versions=package_versions(),
    )
    _write(folder / NAME, manifest.to_json())


def load_folder(
    folder: Path,
    *,
    factory: Factory | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    allow_pickle: bool = False,
) -> LoadedFolder:
    """The converted model of an output folder, in eval mode on that device.

    factory: needed again where the dense model was no class of transformers and not of torch.nn classes alone; allow_pickle
    opens one that was unpickled without it. dtype: of its weights; None: as saved.
    Raises InputError for a folder that is damaged (which file), newer than this version, or none of ours.
    """
    from moeify.layers.moe_layer import MoELayer
    from moeify.splice.eager import install

    manifest = read_manifest(folder)
    weights = weight_names(manifest.digests)
    if not weights:
        raise InputError(f"{folder / NAME}: field digests lacks moeify.safetensors; convert the model again")
    verify_files(folder, manifest.digests)
    if manifest.source.kind == "onnx":
        _check_of_graph(folder, dtype, device)
        found = open_onnx_folder(folder, manifest, example := read_assumed(folder))
        return LoadedFolder(found.eval(), manifest, read_tokenizer(folder), example, _budget(folder))
    kind = dtype or manifest.dtype
    model = build_skeleton(folder, manifest.source, factory, kind, allow_pickle)
    for path, entry in manifest.layers.items():
        install(model, entry.rewrite, MoELayer(entry.config, dtype=kind, device="meta"), path, entry.places)
    load_weights(model, [folder / name for name in weights], manifest.aliases, cast=dtype is not None)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise InputError(f"{folder}: {name} of the {type(model).__name__} is in no file; give a factory that computes it")
    return LoadedFolder(model.to(device).eval(), manifest, read_tokenizer(folder), read_assumed(folder), _budget(folder))


def _check_of_graph(folder: Path, dtype: torch.dtype | None, device: str) -> None:
    if dtype not in (None, torch.float32):
        kind = str(dtype).removeprefix("torch.")
        raise InputError(f"{folder}: is of an ONNX file, which runs in float32, not in {kind}: leave out dtype")
    if not device.startswith("cpu"):
        raise InputError(f"{folder}: is of an ONNX file, which runs on the CPU: leave out device {device}")


def verify_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Raises InputError for a file that is missing or is not what it was."""
    for name, digest in digests.items():
        if not (folder / name).is_file():
            raise InputError(f"{folder}: the file {name} is missing; copy the folder again, or convert the model again")
        if file_digest(folder / name) != digest:
            raise InputError(f"{folder}: the file {name} is damaged or was changed (sha256); copy the folder again")


def package_versions() -> dict[str, str]:
    """Package -> version, of those that decide what a conversion gives."""
    found = {"moeify": moeify.__version__, "torch": str(torch.__version__)}
    with contextlib.suppress(PackageNotFoundError):
        found["transformers"] = version("transformers")
    return found


def _budget(folder: Path) -> float | None:
    """Out of report.json; folders that are older than the field say what they have."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        report = json.loads((folder / "report.json").read_text("utf-8"))
        found = [report.get(name) for name in ("budget", "active_fraction")] if isinstance(report, dict) else []
        return next((value for value in found if isinstance(value, float) and value > 0), None)
    return None


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null in their place."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_apart(output: Path, source: Path) -> None:
    """Raises OutputError where writing `output` would replace the model that is read."""
    real, inner = Path(os.path.realpath(output)), Path(os.path.realpath(source))
    if real == inner or real in inner.parents:
        raise OutputError(f"{output}: holds the model that is being read; choose another name")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
