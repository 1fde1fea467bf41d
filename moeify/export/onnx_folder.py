"""The part of an output folder that is an ONNX graph in place of a torch model.

OUT/model.onnx           the whole model (and OUT/model.onnx.data beyond 2 GB)
OUT/moeify.safetensors   what of its MoE layers does not stand in that file under its own name (small: routers, mostly)
OUT/source/              the batch that it was tried on, and the tokenizer where there was one
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moeify.errors import InputError
from moeify.export.manifest import Manifest
from moeify.export.manifest_layers import LayerEntry
from moeify.export.safetensors_file import write_safetensors
from moeify.frontend.load_safetensors import read_safetensors
from moeify.frontend.onnx.cutting import cut
from moeify.frontend.onnx.file import read_onnx
from moeify.frontend.onnx.inputs import Ports
from moeify.frontend.onnx.model import OnnxModel
from moeify.frontend.onnx.sites import regions_of
from moeify.frontend.onnx.values import all_values
from moeify.ir.model_graph import Batch
from moeify.layers.moe_layer import MoELayer

if TYPE_CHECKING:
    import onnx_ir as ir

NAME, WEIGHTS = "model.onnx", "moeify.safetensors"


def write_rest(model: OnnxModel, folder: Path) -> None:
    """The tensors of MoE layers that `folder`/model.onnx does not hold as they are."""
    graph = read_onnx(folder / NAME)
    kept = {name: tensor.contiguous() for name, tensor in _tensors(model) if not _holds(graph, name, tensor)}
    write_safetensors(kept, folder / WEIGHTS)


def open_onnx_folder(folder: Path, manifest: Manifest, example: Batch | None) -> OnnxModel:
    """The model of such a folder, its MoE layers in torch, the rest by ONNX Runtime.

    Raises InputError where the parts do not fit together.
    """
    path = folder / NAME
    if NAME not in manifest.digests or not isinstance(example, dict):
        raise InputError(f"{folder}: lacks {NAME}, or the batch that it was tried on; convert the model again")
    graph = read_onnx(path)
    model = OnnxModel(graph, Ports.of(graph, str(path), named=example))
    regions = {}
    for name, entry in manifest.layers.items():
        found = regions_of(graph.graph, entry.rewrite)
        if found is None:
            raise InputError(f"{path}: has no MoE layer {name} where the manifest says; convert the model again")
        regions[name] = found
    channels = frozenset(name for name, entry in manifest.layers.items() if entry.rewrite.channels)
    cut(model, regions, channels, all_values(model, example, str(path), given=True))
    stored = read_safetensors(folder / WEIGHTS, may_be_empty=True)  # without a router all stands in model.onnx
    for name, entry in manifest.layers.items():
        model.install(name, _layer(name, entry, graph, stored, path))
    return model


def _layer(name: str, entry: LayerEntry, graph: ir.Model, stored: Mapping[str, Tensor], path: Path) -> MoELayer:
    layer = MoELayer(entry.config, device="meta")
    found = {key: _found(f"{name}.{key}", graph, stored) for key in layer.state_dict()}
    absent = [key for key, value in found.items() if value is None]
    if absent:
        raise InputError(f"{path}: holds no {name}.{absent[0]}; convert the model again")
    try:
        layer.load_state_dict({key: value for key, value in found.items() if value is not None}, assign=True)
    except RuntimeError as error:
        raise InputError(f"{path}: {name}: {' '.join(str(error).split())}; convert the model again") from error
    return layer.eval()


def _found(name: str, graph: ir.Model, stored: Mapping[str, Tensor]) -> Tensor | None:
    if name in stored:
        return stored[name]
    value = graph.graph.initializers.get(name)
    return None if value is None or value.const_value is None else torch.tensor(value.const_value.numpy())


def _tensors(model: OnnxModel) -> Iterator[tuple[str, Tensor]]:
    for path, layer in model.layers.items():
        yield from ((f"{path}.{name}", tensor.detach()) for name, tensor in layer.state_dict().items())


def _holds(graph: ir.Model, name: str, tensor: Tensor) -> bool:
    found = _found(name, graph, {})
    return found is not None and found.dtype == tensor.dtype and torch.equal(found, tensor)
