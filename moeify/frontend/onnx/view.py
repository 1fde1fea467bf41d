"""An ONNX graph as the matcher reads it: an fx graph in torch's words. It is looked at, never run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from moeify.frontend.onnx.opaque import Writer
from moeify.frontend.onnx.operators import written
from moeify.frontend.onnx.scopes import module_stack
from moeify.frontend.traced import Traced

if TYPE_CHECKING:
    import onnx_ir as ir

#: Where an fx node keeps the name of the ONNX value that it stands for.
VALUE = "onnx_value"
#: Operators that measure a value: who only asks for a shape does not use it.
_MEASURES = ("Shape", "Size")


def onnx_view(model: ir.Model, paths: Mapping[str, str], values: Mapping[str, Tensor]) -> Traced:
    """paths: of initializers in the module that holds them, by their names. values: every value of one run by its name, on the
    meta device; one that is absent is no tensor."""
    return _View(paths, values).of(model)


class _View:
    def __init__(self, paths: Mapping[str, str], values: Mapping[str, Tensor]) -> None:
        self._paths, self._values = paths, values
        self._graph = fx.Graph()
        self._nodes: dict[str, fx.Node] = {}
        self._lifted: dict[str, str] = {}

    def of(self, model: ir.Model) -> Traced:
        inputs = [self._placeholder(value.name or "") for value in model.graph.inputs]
        for name, value in model.graph.initializers.items():
            node = self._placeholder(name)
            if name in self._paths:
                assert value.const_value is not None
                self._lifted[node.name] = self._paths[name]
                node.meta["val"] = self._values[name]
        for onnx_node in model.graph:
            self._translate(onnx_node)
        self._graph.output(tuple(self._nodes[value.name or ""] for value in model.graph.outputs))
        spec = pytree.tree_structure(None)
        module = fx.GraphModule({}, self._graph)
        return Traced(module, self._lifted, {}, tuple(node.name for node in inputs), None, spec, spec)

    def _placeholder(self, name: str) -> fx.Node:
        node = self._graph.placeholder(f"value_{len(self._nodes)}")
        node.meta |= {"val": self._values.get(name), VALUE: name}
        self._nodes[name] = node
        return node

    def _translate(self, node: ir.Node) -> None:
        shapes = tuple(self._shape(value) for value in node.outputs if value.name)
        measures = node.op_type in _MEASURES and node.domain == ""
        inputs = [] if measures else [self._input(value) for value in read_by(node)]
        write = Writer(self._graph, node, shapes, tuple(map(constant, node.inputs)), module_stack(node))
        named = (value.name for value in node.outputs if value.name)
        for name, made in zip(named, written(write, inputs or [None]), strict=True):
            made.meta[VALUE] = name
            self._nodes[name] = made

    def _input(self, value: ir.Value | None) -> fx.Node | None:
        return None if value is None or not value.name else self._nodes[value.name]

    def _shape(self, value: ir.Value) -> Any:
        return self._values.get(value.name or "", torch.empty(0, device="meta", dtype=torch.uint8))


def read_by(node: ir.Node) -> list[ir.Value | None]:
    """The inputs of a node, then the values that graphs inside it take from outside."""
    return [*node.inputs, *captured(node)]


def captured(node: ir.Node) -> Iterator[ir.Value]:
    """The values of the graph around a node that graphs inside it read."""
    inner = [graph for attribute in node.attributes.values() for graph in _graphs(attribute)]
    made = {value for graph in inner for value in _made(graph)}
    seen: set[Any] = set()
    for graph in inner:
        for inside in graph.all_nodes():
            for value in inside.inputs:
                if value is not None and value not in made and value not in seen:
                    seen.add(value)
                    yield value
        for value in graph.outputs:
            if value not in made and value not in seen:
                seen.add(value)
                yield value


def _graphs(attribute: Any) -> list[Any]:
    return {"GRAPH": lambda: [attribute.value], "GRAPHS": lambda: list(attribute.value)}.get(attribute.type.name, list)()


def _made(graph: Any) -> Iterator[Any]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph.all_nodes():
        yield from node.outputs
        for attribute in node.attributes.values():
            for inner in _graphs(attribute):
                yield from (*inner.inputs, *inner.initializers.values())


def constant(value: ir.Value | None) -> Any:
    """A small constant as Python values; None for what is computed, or large."""
    tensor = None if value is None else value.const_value
    return tensor.numpy().tolist() if tensor is not None and tensor.size <= 64 else None
