"""The opaque `moeify::MoE` and `moeify::QMoE` nodes of a graph: read, named by their layers, their k made settable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moeify.errors import ConversionError
from moeify.export.onnx.body_shape import DOMAIN, INPUTS, OPERATOR, OPTIONAL, QUANTISED, QUANTISED_INPUTS, BodyShape

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray


@dataclass(frozen=True)
class MoENode:
    """What stands in a node. name: the layer's path. offsets: as in docs/moe-layer.md. k: None without a top-k rule."""

    name: str
    hidden: int
    output: int
    offsets: tuple[int, ...]
    shape: BodyShape
    k: int | None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The rows of each routed expert."""
        return tuple(b - a for a, b in zip(self.offsets, self.offsets[1:]))

    @property
    def size(self) -> int:
        """The rows of every routed expert where all have as many, else 0."""
        return self.sizes[0] if len(set(self.sizes)) == 1 else 0


def moe_nodes(model: ir.Model) -> list[ir.Node]:
    """The MoE nodes of the main graph and of graphs inside its nodes, in order."""
    import onnx_ir as ir

    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return [node for node in nodes if node.domain == DOMAIN and node.op_type in (OPERATOR, QUANTISED)]


def given_inputs(node: ir.Node) -> dict[str, ir.Value]:
    """The inputs of an MoE node by their names."""
    names = QUANTISED_INPUTS if node.op_type == QUANTISED else INPUTS
    return {name: value for name, value in zip(names, node.inputs) if value is not None}


def read_node(node: ir.Node) -> MoENode:
    """Raises ConversionError where the node does not follow docs/moe-layer.md."""
    given = given_inputs(node)
    offsets, up, down = _values(given, "offsets", node), given.get("up"), given.get("down")
    if offsets is None or up is None or down is None or up.shape is None or down.shape is None:
        raise ConversionError(f"{node.name}: an MoE node without offsets, up or down of known shape")
    shape = BodyShape(
        experts=len(offsets) - 1,
        activation=node.attributes.get_string("activation", ""),
        shared=bool(offsets[0]),
        gate_rule=node.attributes.get_string("gate_rule", "one"),
        normalize=bool(node.attributes.get_int("normalize", 0)),
        present=frozenset(given) & frozenset(OPTIONAL),
        bits=node.attributes.get_int("bits", 0) if node.op_type == QUANTISED else 0,
    )
    k = _values(given, "k", node)
    weight = up.name or ""
    return MoENode(
        name=weight.removesuffix(".up") if weight.endswith(".up") else node.name or OPERATOR,
        hidden=up.shape.numpy()[1] * (2 if shape.bits == 4 else 1),
        output=down.shape.numpy()[1] * (2 if shape.bits == 4 else 1),
        offsets=tuple(int(o) for o in offsets),
        shape=shape,
        k=None if k is None else int(k),
    )


def named_nodes(model: ir.Model) -> tuple[tuple[ir.Node, MoENode], ...]:
    """Names each node by its layer and makes its k an initializer `<layer>.k`. Changes the model."""
    found = []
    for node in moe_nodes(model):
        read = read_node(node)
        node.name = _free(model, read.name)
        inputs = read.shape.inputs
        offsets = node.inputs[inputs.index("offsets")]
        if offsets is not None and offsets.name:
            offsets.name = offsets.name.replace("._offsets", ".offsets")  # the attribute of MoELayer
        if read.k is not None:
            node.replace_input_with(inputs.index("k"), _initializer(model, f"{read.name}.k", read.k))
        found.append((node, read))
    return tuple(found)


def _free(model: ir.Model, name: str) -> str:
    """The name, or `name@1` and so on for further calls of the same layer."""
    taken = {node.name for node in model.graph}
    calls = (name if i == 0 else f"{name}@{i}" for i in range(len(taken) + 1))
    return next(call for call in calls if call not in taken)


def _initializer(model: ir.Model, name: str, value: int) -> ir.Value:
    import onnx_ir as ir

    if name not in model.graph.initializers:
        tensor = ir.tensor(np.array(value, dtype=np.int64), name=name)
        model.graph.register_initializer(ir.val(name, const_value=tensor))
    return model.graph.initializers[name]


def _values(given: dict[str, ir.Value], name: str, node: ir.Node) -> NDArray[np.int64] | None:
    """A constant input as an array; None where absent."""
    import onnx_ir as ir

    if name not in given:
        return None
    tensor = ir.convenience.get_const_tensor(given[name])
    if tensor is None:
        raise ConversionError(f"{node.name}: the input {name} of an MoE node is not a constant")
    return np.asarray(tensor.numpy())
