"""A dense ONNX graph as a module: its weights are parameters, its feed-forward networks can be replaced by MoE layers, and the
rest runs through ONNX Runtime."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from moeify.frontend.match import Call, Found
from moeify.frontend.onnx.inputs import Ports
from moeify.frontend.onnx.regions import Region, in_order, read_from_outside, stages
from moeify.frontend.onnx.segment import Segment
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
    """graph: as `read_onnx` gives it. ports: its inputs and outputs. `paths`: of its float initializers among the parameters.

    Takes the graph's inputs by name (caches of a decoder are left empty) and gives a dict of its outputs, floats first.
    """

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

    def cut(
        self, regions: Mapping[str, Sequence[Region]], channels: frozenset[str], values: Mapping[str, Tensor]
    ) -> dict[str, tuple[Call, ...]]:
        """Says where its feed-forward networks are, by path, and gives the calls of each in `traced`.

        channels: those whose features stand in dim 1. values: every value by its name, on the meta device.
        """
        self.regions, self.channels = {path: tuple(each) for path, each in regions.items()}, channels
        self.dims = {name: value.ndim for name, value in values.items()}
        plan = _Cutter(self, values)
        self.traced = plan.traced
        return plan.calls

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
        """Registers an initializer: float32 as a parameter, others as a buffer; the path, None for types that torch lacks."""
        tensor = value.const_value
        if tensor is None or tensor.dtype.name not in _KEPT:
            return None
        holder, path, leaf = _place(self, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the memory is the file's: nothing ever writes to it
            kept = torch.from_numpy(tensor.numpy())
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


class FeedForwardCall:
    """One call of a feed-forward network: by its MoE layer where one is installed, else as the graph has it."""

    def __init__(self, model: OnnxModel, path: str, dense: Segment) -> None:
        self._model, self._path, self._dense = model, path, dense
        self.__name__ = "feed_forward"

    def __call__(self, x: Tensor, *others: Tensor) -> Tensor:
        if self._path in self._model.layers:
            y: Tensor = self._model.replaced(self._path)(x)
            return y
        return self._dense(x, *others)[0]


class _Cutter:
    """Writes the graph in which a segment between two feed-forward networks is one node, and each of these another."""

    def __init__(self, model: OnnxModel, values: Mapping[str, Tensor]) -> None:
        self._model, self._values = model, values
        self._types = {name: value.dtype for name, value in values.items()}
        self._graph, self._nodes = fx.Graph(), dict[str, fx.Node]()
        self.calls: dict[str, tuple[Call, ...]] = {}
        owners = {region: path for path, regions in model.regions.items() for region in regions}
        regions = in_order(model.graph.graph, owners)
        fed = self._inputs()
        found: dict[str, list[Call]] = {path: [] for path in model.regions}
        parts = stages(model.graph.graph, regions)
        for number, nodes in enumerate(parts):
            later = [*(node for part in parts[number + 1 :] for node in part), *(n for r in regions[number:] for n in r.nodes)]
            self._segment(nodes, later, regions)
            if number < len(regions):
                region = regions[number]
                found[owners[region]].append(self._feed_forward(owners[region], region))
        self.calls = {path: tuple(calls) for path, calls in found.items()}
        outputs = model.ports.outputs
        self._graph.output(tuple(self._nodes[name] for name in outputs))
        self.traced = Traced(
            fx.GraphModule({}, self._graph), {}, {}, tuple(node.name for node in fed), model.ports.fed,
            pytree.tree_structure(dict.fromkeys(model.ports.fed, 0)), pytree.tree_structure(dict.fromkeys(outputs, 0)),
        )  # fmt: skip

    def _inputs(self) -> list[fx.Node]:
        fed = [self._graph.placeholder(name) for name in self._model.ports.fed]
        self._nodes |= dict(zip(self._model.ports.fed, fed))
        for name, cache in self._model.ports.implied.items():
            self._nodes[name] = self._graph.call_function(cache, (fed[0],))
        return fed

    def _segment(self, nodes: list[ir.Node], later: list[ir.Node], regions: Sequence[Region]) -> None:
        """The nodes of one stage as a call that gives what others need of them."""
        if not nodes:
            return
        wanted = {*read_from_outside(later), *self._model.graph.graph.outputs, *(region.x for region in regions)}
        outputs = [value for node in nodes for value in node.outputs if value in wanted]
        inputs = read_from_outside(nodes)
        whole = self._graph.call_function(Segment(self._model.graph, inputs, outputs, self._types), self._arguments(inputs))
        for place, value in enumerate(outputs):
            self._nodes[value.name or ""] = self._graph.call_function(operator.getitem, (whole, place))

    def _feed_forward(self, path: str, region: Region) -> Call:
        dense = Segment(self._model.graph, region.inputs, (region.y,), self._types)
        run = FeedForwardCall(self._model, path, dense)
        y = self._graph.call_function(run, self._arguments(region.inputs))
        self._nodes[region.y.name or ""] = y
        return Call(self._nodes[region.x.name or ""], y, frozenset(), path in self._model.channels)

    def _arguments(self, values: Sequence[ir.Value]) -> tuple[fx.Node, ...]:
        return tuple(self._nodes[value.name or ""] for value in values)
