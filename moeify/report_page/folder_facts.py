"""What a converted folder says of itself, without a weight being read."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from moeify.errors import InputError, UsageError
from moeify.export.evaluations import Quality, recorded
from moeify.export.manifest import LayerEntry, read_manifest
from moeify.export.onnx_folder import NAME as GRAPH
from moeify.export.weight_shards import weight_names
from moeify.frontend.onnx.file import read_onnx
from moeify.measure.layer_errors import NAMES
from moeify.pipeline.recipe import Recipe


@dataclass(frozen=True)
class LayerFacts:
    """One MoE layer. Weights are those of matrices. active: weights used by a token / weights of the dense FFN, as recorded.
    errors: relative squared errors by name (moeify.measure.layer_errors), empty where the layer was not judged."""

    path: str
    kind: str
    activation: str
    hidden: int
    neurons: int
    sizes: tuple[int, ...]
    shared: int
    top_k: int | None
    threshold: float | None
    active: float
    dense_weights: int
    weights: int
    errors: Mapping[str, float]
    chooses: bool = False

    @property
    def choice(self) -> str:
        """By what rule experts run."""
        if self.threshold is not None:
            return f"threshold {self.threshold:.3g}" + ("" if self.top_k is None else f", at most {self.top_k}")
        return "always on" if self.top_k is None else f"top {self.top_k} of {len(self.sizes)}"


@dataclass(frozen=True)
class FolderFacts:
    """A converted folder. budget: the active fraction that was asked for, None where none was. parameters: all values of the
    converted model. data: what the calibration data said of themselves. verdict: the report's own first line."""

    name: str
    model: str
    source: str
    recipe: str
    description: str
    recipe_text: str
    versions: Mapping[str, str]
    budget: float | None
    verdict: str | None
    parameters: int
    layers: tuple[LayerFacts, ...]
    data: Mapping[str, Any]
    notes: tuple[str, ...]
    refusals: tuple[tuple[str, str], ...]
    quality: tuple[Quality, ...] = ()

    def active_fraction(self, measured: Mapping[str, float]) -> float | None:
        """Over all layers, weighted by size; measured: by path, what is taken where it is there. None without layers."""
        whole = sum(layer.dense_weights for layer in self.layers)
        return sum(measured.get(la.path, la.active) * la.dense_weights for la in self.layers) / whole if whole else None

    def active_parameters(self, measured: Mapping[str, float]) -> int:
        """The values that one token uses: those outside of the layers, and what it uses of these."""
        outside = self.parameters - sum(layer.weights for layer in self.layers)
        return outside + round(sum(measured.get(la.path, la.active) * la.dense_weights for la in self.layers))


def folder_facts(folder: Path) -> FolderFacts:
    """Raises InputError for a folder that is none of ours, or damaged (which file)."""
    manifest = read_manifest(folder)
    report = _report(folder / "report.json")
    text = _text(folder / "recipe.toml")
    try:
        recipe = Recipe.parse(text, str(folder / "recipe.toml"))
    except UsageError as error:
        raise InputError(f"{error}; copy the folder again, or convert the model again") from error
    judged = {str(layer.get("path")): layer for layer in _tables(report.get("layers"))}
    refusals = [pair for pair in _list(report.get("refusals")) if isinstance(pair, list) and len(pair) == 2]
    return FolderFacts(
        name=folder.resolve().name,
        model=manifest.source.model_class.rpartition(".")[2],
        source=manifest.source.name,
        recipe=recipe.name,
        description=recipe.description,
        recipe_text=text,
        versions=manifest.versions,
        budget=_fraction(report.get("budget")),
        verdict=report["verdict"] if isinstance(report.get("verdict"), str) and report["verdict"].strip() else None,
        parameters=_of_graph(folder / GRAPH)
        if manifest.source.kind == "onnx"
        else sum(_values(folder / name) for name in weight_names(manifest.digests)),
        layers=tuple(_layer(path, entry, judged.get(path, {})) for path, entry in manifest.layers.items()),
        data=report["data"] if isinstance(report.get("data"), dict) else {},
        notes=tuple(map(str, _list(report.get("notes")))),
        refusals=tuple((str(path), str(reason)) for path, reason in refusals),
        quality=recorded(folder),
    )


def _layer(path: str, entry: LayerEntry, report: Mapping[str, Any]) -> LayerFacts:
    config = entry.config
    nulls = report["nulls"] if isinstance(report.get("nulls"), dict) else {}
    errors = nulls["errors"] if isinstance(nulls.get("errors"), dict) else {}
    active = config.active_fraction(config.dense_neurons)
    if config.threshold is not None:
        active = _fraction(report.get("active_fraction")) or active
    return LayerFacts(
        path=path,
        kind="gated" if config.gated else "two-matrix",
        activation=config.activation,
        hidden=config.hidden,
        neurons=config.dense_neurons,
        sizes=config.sizes,
        shared=config.shared,
        top_k=config.top_k,
        threshold=config.threshold,
        active=active,
        dense_weights=config.dense_neurons * (config.hidden * (2 if config.gated else 1) + config.output),
        weights=config.parameters,
        errors={name: float(errors[name]) for name in NAMES if _is_number(errors.get(name)) and errors[name] >= 0},
        chooses=nulls.get("chooses") is True,
    )


def _report(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON; copy the folder again, or convert the model again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds no table; copy the folder again, or convert the model again")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {reason}; copy the folder again, or convert the model again") from error


def _values(path: Path) -> int:
    """The number of values in a safetensors file, by its header."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read: {error}; copy the folder again, or convert the model again") from error


def _of_graph(path: Path) -> int:
    """The number of floating-point values that an ONNX graph holds."""
    held = [value.const_value for value in read_onnx(path).graph.initializers.values()]
    return sum(tensor.size for tensor in held if tensor is not None and tensor.dtype.is_floating_point())


def _is_number(value: Any) -> bool:
    """A finite one, as a float may be: JSON's integers are of any size."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _fraction(value: Any) -> float | None:
    return float(value) if _is_number(value) and value > 0 else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _tables(value: Any) -> list[dict[str, Any]]:
    return [item for item in _list(value) if isinstance(item, dict)]
