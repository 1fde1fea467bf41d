"""A dense ONNX graph as a module: its weights are parameters, its feed-forward networks can be replaced by MoE layers, and the
rest runs through ONNX Runtime."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from moeify.frontend.match import Found
from moeify.frontend.onnx.inputs import Ports
from moeify.frontend.onnx.regions import Region
from moeify.frontend.traced import Traced
from moeify.ir.model_graph import Batch
from moeify.layers.channels import OverChannels
from moeify.layers.moe_layer import MoELayer

if TYPE_CHECKING:
    import onnx_ir as ir

#: Types of initializers that become tensors of the module.
_KEPT = frozenset({"FLOAT", "DOUBLE", "INT64", "INT32", "BOOL"})
#: The submodule that MoE layers are registered under, by number.
_LAYERS = "moe"


class OnnxModel(nn.Module):
    """graph: as `read_onnx` gives it. ports: its inputs and outputs. paths: of its initializers in the module, by their names.

    What `moeify.frontend.onnx.cutting` sets: regions: of its feed-forward networks, by path. channels: the paths of those whose
    features stand in dim 1. dims: of every value, by name. traced: the graph that is run. found: what the matcher found.
    layers: the MoE layers in place of feed-forward networks, by path.

    Takes the graph's inputs by name (caches of a decoder are left empty) and gives a dict of its outputs, floats first.
    untrainable: why no loop can train it.
    """

    untrainable = "it is an ONNX graph, which has no gradients: convert the PyTorch model that it was exported from"

    def __init__(self, graph: ir.Model, ports: Ports) -> None:
        super().__init__()
        self.graph, self.ports = graph, ports
        self.paths = {name: path for name, value in graph.graph.initializers.items() if (path := self._keep(name, value))}
        self.regions: dict[str, tuple[Region, ...]] = {}
        self.layers: dict[str, MoELayer] = {}
        self.channels: frozenset[str] = frozenset()
        self.dims: dict[str, int] = {}
        self.traced: Traced | None = None
        self.found: Found | None = None
        self.add_module(_LAYERS, nn.ModuleList())

    def install(self, path: str, layer: MoELayer) -> None:
        """From now on the layer takes the place of the feed-forward network."""
        self.layers[path] = layer
        layers = self.get_submodule(_LAYERS)
        assert isinstance(layers, nn.ModuleList)
        layers.append(layer)

    def replaced(self, path: str) -> nn.Module:
        """What computes the feed-forward network's output of its input, once a layer is installed."""
        layer = self.layers[path]
        return OverChannels(layer) if path in self.channels else layer

    def forward(self, *args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        assert self.traced is not None, "the graph is not cut yet"
        batch: Batch = {**dict(zip(self.ports.fed, args)), **kwargs}
        outputs: dict[str, Tensor] = pytree.tree_unflatten(self.traced.run(self, batch), self.traced.output_spec)
        return outputs

    def get_input_embeddings(self) -> Any:
        """Says how many token ids there are, where the graph looks them up in a table."""
        return None if self.ports.vocabulary is None else SimpleNamespace(num_embeddings=self.ports.vocabulary)

    def _keep(self, name: str, value: ir.Value) -> str | None:
        """Registers an initializer: float32 as a parameter, others as a buffer; the path, None for types that torch lacks.

        What is a vector but for leading dims of 1, as biases often are, is registered as one.
        """
        tensor = value.const_value
        if tensor is None or tensor.dtype.name not in _KEPT:
            return None
        holder, path, leaf = _place(self, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the memory is the file's: nothing ever writes to it
            kept = torch.from_numpy(tensor.numpy())
        kept = kept.flatten() if 1 < kept.numel() == kept.shape[-1] else kept
        if kept.dtype == torch.float32:
            holder.register_parameter(leaf, nn.Parameter(kept, requires_grad=False))
        else:
            holder.register_buffer(leaf, kept)
        return ".".join([*path, leaf])


def _place(model: nn.Module, name: str) -> tuple[nn.Module, list[str], str]:
    """The module that is to hold the tensor of a dotted name, made if need be, the path to it, and the free name there."""
    holder, path = model, list[str]()
    *owners, leaf = (part or "_" for part in name.split("."))
    for owner in owners:
        while owner not in dict(holder.named_children()) and hasattr(holder, owner):
            owner += "_"
        if owner not in dict(holder.named_children()):
            holder.add_module(owner, nn.Module())
        holder = holder.get_submodule(owner)
        path.append(owner)
    while hasattr(holder, leaf):
        leaf += "_"
    return holder, path, leaf
