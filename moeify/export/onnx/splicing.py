"""An ONNX graph with opaque `moeify::MoE` nodes in place of its converted feed-forward networks.

    x -> MatMul -> Add -> ... -> MatMul -> Add -> y   =>   x -> router -> moeify::MoE -> y

Layers and routers are translated as those of torch models are: all of them in one trace, whose graph is then put in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moeify.export.onnx.interface import Interface
from moeify.export.onnx.tracing import trace
from moeify.frontend.onnx.model import OnnxModel
from moeify.frontend.onnx.sites import regions_of
from moeify.ir.feed_forward import Rewrite

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Place:
    """One call of a layer: between the values of these names."""

    path: str
    x: str
    y: str
    dims: int
    channels: bool


def spliced_graph(model: OnnxModel) -> ir.Model:
    """The model's graph, a new one, with its MoE layers in it; the weights of what they replace are gone."""
    import onnx_ir as ir
    from onnx_ir import passes
    from onnx_ir.passes import common

    whole = model.graph.clone()
    places = list(_places(model))
    if places:
        _put_in(whole, _translated(model, places, whole.opset_imports[""]), places)
    functions: Any = common.RemoveUnusedFunctionsPass  # bodies, where the file was converted before
    passes.Sequential(common.RemoveUnusedNodesPass(), functions(), common.RemoveUnusedOpsetsPass())(whole)
    whole.graph.sort()
    for value in whole.graph.initializers.values():
        if isinstance(tensor := value.const_value, ir.ExternalTensor):  # else the new file would name the old one's data
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)
    return whole


def onnx_interface(model: OnnxModel, example: dict[str, Tensor]) -> Interface:
    """Inputs and outputs as the file names them; caches are among the inputs, and empty."""
    names = tuple(str(value.name) for value in model.graph.graph.outputs)

    def implied(inputs: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
        made = model.ports.complete(inputs)
        return {name: made[name].numpy() for name in model.ports.implied}

    return Interface(_InOrder(model), tuple(example.values()), tuple(example), names, implied=implied, may_refuse=True)


class _InOrder(nn.Module):
    """The model with tensors one by one, in the order of its inputs, and out as the file gives them."""

    def __init__(self, model: OnnxModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = self.model(*tensors)
        return tuple(found[str(value.name)] for value in self.model.graph.graph.outputs)


class _Layers(nn.Module):
    """The MoE layers of all places, each on an input of its own."""

    def __init__(self, model: OnnxModel, places: Sequence[Place]) -> None:
        super().__init__()
        self.traced = nn.ModuleDict({f"layer_{i}": model.layers[path] for i, path in enumerate(model.layers)})
        self._runs = [model.replaced(place.path) for place in places]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(run(x) for run, x in zip(self._runs, inputs, strict=True))


def _places(model: OnnxModel) -> Iterator[Place]:
    assert model.traced is not None
    for path in model.layers:
        for each in model.regions[path]:
            x, y = str(each.x.name), str(each.y.name)
            yield Place(path, x, y, model.dims[x], path in model.channels)


def _translated(model: OnnxModel, places: Sequence[Place], opset: int) -> ir.Model:
    """Inputs x_0, x_1, ..., outputs y_0, y_1, ...; tensors of a layer are named `<path>.up` and so on."""
    inputs = tuple(_input(place, model.layers[place.path].config.hidden) for place in places)
    xs, ys = (tuple(f"{kind}_{i}" for i in range(len(places))) for kind in "xy")
    free = torch.export.Dim.AUTO
    axes = tuple({axis: free for axis in range(p.dims) if axis != _features(p)} for p in places)
    graph = trace(Interface(_Layers(model, places).eval(), inputs, xs, ys), opset, axes)
    owners = {f"layer_{number}": path for number, path in enumerate(model.layers)}
    for name in list(graph.graph.initializers):
        layer, _, tensor = name.partition(".")
        graph.graph.initializers[name].name = f"{owners[layer]}.{tensor}" if layer in owners else f"moeify/{name}"
    return graph


def _features(place: Place) -> int:
    return 1 if place.channels else place.dims - 1


def _input(place: Place, hidden: int) -> Tensor:
    """Of sizes that are unlike each other: torch takes equal ones for one."""
    shape = [2 + axis for axis in range(place.dims)]
    shape[_features(place)] = hidden
    return torch.zeros(shape)


def _put_in(whole: ir.Model, layers: ir.Model, places: Sequence[Place]) -> None:
    """Moves the nodes and weights of the layers into the graph and connects them. Changes both."""
    ends = []
    for number, place in enumerate(places):
        found = regions_of(whole.graph, Rewrite("graph", {"x": place.x, "y": place.y}))
        assert found is not None, place
        ends.append((found[0].x, found[0].y, layers.graph.inputs[number], layers.graph.outputs[number]))
    nodes, weights = list(layers.graph), list(layers.graph.initializers.values())
    layers.graph.outputs.clear()
    layers.graph.remove(nodes)
    layers.graph.initializers.clear()
    for x, y, inner_x, inner_y in ends:
        inner_x.replace_all_uses_with(x)
        name, y.name = y.name, f"{y.name}.dense"
        inner_y.type, inner_y.shape = y.type, y.shape
        y.replace_all_uses_with(inner_y, replace_graph_outputs=True)
        inner_y.name = name
    taken = {str(value.name) for node in whole.graph for value in node.outputs} | {str(v.name) for v in whole.graph.inputs}
    kept = [inner_y for _, _, _, inner_y in ends]
    for value in (value for node in nodes for value in node.outputs if value not in kept):
        value.name = _free(f"moeify/{value.name}", taken)
    named = {str(node.name) for node in whole.graph}
    for node in nodes:
        node.name = _free(f"moeify/{node.name}", named)
    _rename_dense(whole, {str(value.name) for value in weights})
    for value in weights:
        whole.graph.register_initializer(value)
    whole.graph.extend(nodes)
    for domain, version in layers.opset_imports.items():
        whole.opset_imports.setdefault(domain, version)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _rename_dense(whole: ir.Model, wanted: set[str]) -> None:
    """Weights of the dense graph make way: a layer's tensors have the names that tell which layer it is."""
    taken = {*whole.graph.initializers, *wanted}
    for name in wanted & set(whole.graph.initializers):
        whole.graph.initializers[name].name = _free(f"{name}.dense", taken)
