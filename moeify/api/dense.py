"""A converted model becomes a dense one again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from moeify.api.arguments import Data, Example, Factory, device_of, example_of, open_batches
from moeify.errors import UsageError
from moeify.pipeline.context import Progress, no_progress

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moeify.ir.model_graph import Batch
    from moeify.layers.dense_ffn import Gathering
    from moeify.measure.divergence import Divergence


_GRAPH = "is of an ONNX file, whose graph is not made dense again: take the dense file that it was converted from"


@dataclass(frozen=True)
class DenseLayer:
    """One FFN that is dense again.

    equals: what it computes exactly; None for an approximation. weight_distance: of the copies from the weights that were
    gathered, relative; 0 where the experts were no copies. output_distance: ||dense - MoE layer|| / ||MoE layer|| on the
    layer's inputs; None without data.
    """

    path: str
    experts: int
    equals: str | None
    weight_distance: float
    output_distance: float | None


@dataclass(frozen=True, eq=False)
class Dense:
    """model: the user's class, dense again. by: how experts were gathered. divergence: of the dense model's output from that
    of the MoE model, as it was routed; None without data. output: what was written, or None."""

    model: nn.Module
    by: str
    layers: tuple[DenseLayer, ...]
    divergence: Divergence | None = None
    output: Path | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "output": None if self.output is None else str(self.output),
            "by": self.by,
            "layers": [asdict(layer) for layer in self.layers],
            "divergence": None if self.divergence is None else asdict(self.divergence),
        }


def to_dense(
    source: str | Path | nn.Module,
    output: str | Path | None = None,
    *,
    by: str | Gathering = "concatenate",
    data: Data | None = None,
    tokens: int | None = None,
    factory: Factory | None = None,
    example: Example | None = None,
    device: str = "cpu",
    force: bool = False,
    allow_pickle: bool = False,
    progress: Progress = no_progress,
) -> Dense:
    """Makes a converted model dense again: each MoE layer's experts become one FFN, in the modules that stood there before.

    source: a converted folder, or a converted model in memory, which is changed in place (batches then need no example).
    by: "concatenate" for experts that were split off an FFN (exact, see `DenseLayer.equals`), "mean" or "svd" for copies of
    one, or a strategy of `moeify.layers.dense_ffn` with options. data: on which distances are measured; else they are told of
    the weights alone. output: a Hugging Face folder for a class of transformers, else a .safetensors file of the state_dict;
    it appears whole or not at all. All layers change, or none.

    Raises UsageError for a layer that cannot be made dense this way, ConversionError for one that does not know where it came
    from, InputError and OutputError as their words say.
    """
    from moeify.export.dense import save_dense
    from moeify.export.folder import load_folder
    from moeify.frontend.load_example import read_example
    from moeify.layers.dense_ffn import gathering

    strategy = gathering(by)
    if tokens is not None and data is None:
        raise UsageError(f"tokens {tokens} counts data, but there are none: give data too")
    target = None if output is None else Path(output)
    if isinstance(source, nn.Module):
        _check_module(source, target, force=force)
        model, files = source, None
        batch = None if example is None else read_example(example, "cpu")
        batches = None if data is None else open_batches(data, model, None, batch, tokens)
    else:
        folder = Path(source).expanduser()
        _check_folder(folder, target, strategy, force=force)
        progress("loading", 0, None)
        opened = load_folder(folder, factory=factory, device=device_of(device), allow_pickle=allow_pickle)
        model, files = opened.model, folder / "source"
        batches = None if data is None else open_batches(data, model, opened.tokenizer, example_of(opened, example), tokens)
    layers, divergence = _densify(model, strategy, batches, progress)
    if target is not None:
        progress("writing", 0, None)
        save_dense(model, target, files, force=force)
    return Dense(model, strategy.name, layers, divergence, target)


def _check_module(model: nn.Module, target: Path | None, *, force: bool) -> None:
    from moeify.export.dense import check_dense_target
    from moeify.frontend.load_module import class_path
    from moeify.frontend.onnx.model import OnnxModel

    if isinstance(model, OnnxModel):
        raise UsageError(f"the model {_GRAPH}")
    if target is not None:
        check_dense_target(target, class_path(model), force=force)


def _check_folder(folder: Path, target: Path | None, strategy: Gathering, *, force: bool) -> None:
    """All that can be told before a weight is read."""
    from moeify.export.dense import check_dense_target
    from moeify.export.folder import check_apart
    from moeify.export.manifest import read_manifest
    from moeify.splice.densify import check_gathering

    manifest = read_manifest(folder)
    if manifest.source.kind == "onnx":
        raise UsageError(f"{folder}: {_GRAPH}")
    if target is not None:
        check_apart(target, folder)
        check_dense_target(target, manifest.source.model_class, force=force)
    for path, entry in manifest.layers.items():
        if entry.places is not None:
            check_gathering(path, entry.config, entry.places, strategy)


def _densify(
    model: nn.Module, strategy: Gathering, batches: Iterable[Batch] | None, progress: Progress
) -> tuple[tuple[DenseLayer, ...], Divergence | None]:
    from moeify.layers.budget import moe_layers
    from moeify.measure.gathered import output_distances, weight_distance
    from moeify.splice.densify import dense_weights, put_back

    progress("gathering experts", 0, None)
    weights, layers = dense_weights(model, strategy), moe_layers(model)
    distances: dict[str, float] = {}
    divergence = None
    if batches is not None:
        progress("comparing", 0, None)
        distances, divergence = output_distances(model, layers, weights, batches)
    found = tuple(
        DenseLayer(
            path=path if layer.origin is None else layer.origin.path,
            experts=layer.config.experts,
            equals=strategy.equals(layer.config),
            weight_distance=weight_distance(layer, weights[path]),
            output_distance=distances.get(path),
        )
        for path, layer in layers.items()
    )
    del layers  # so that each can be let go once it is replaced
    put_back(model, weights)
    return found, divergence
