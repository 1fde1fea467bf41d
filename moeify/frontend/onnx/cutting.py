"""An ONNX model cut at its feed-forward networks: a graph in which what lies between two of them is one node."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from moeify.frontend.match import Call
from moeify.frontend.onnx.model import OnnxModel
from moeify.frontend.onnx.regions import Region, in_order, read_from_outside, stages
from moeify.frontend.onnx.segment import Segment
from moeify.frontend.traced import Traced

if TYPE_CHECKING:
    import onnx_ir as ir


def cut(
    model: OnnxModel, regions: Mapping[str, Sequence[Region]], channels: frozenset[str], values: Mapping[str, Tensor]
) -> dict[str, tuple[Call, ...]]:
    """Says where the model's feed-forward networks are, by path, and gives the calls of each in `model.traced`.

    channels: those whose features stand in dim 1. values: every value by its name, on the meta device.
    """
    model.regions, model.channels = {path: tuple(each) for path, each in regions.items()}, channels
    model.dims = {name: value.ndim for name, value in values.items()}
    plan = _Cutter(model, values)
    model.traced = plan.traced
    return plan.calls


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
