"""The bodies of `moeify::MoE` and `moeify::QMoE` (docs/moe-layer.md) in standard ONNX operators: they run in any ONNX runtime.

An expert that no token chose works on zero rows: its weights are not read. The rows of an expert are taken by Split, so
that a runtime that folds constants keeps one (prepacked) matrix an expert and no copy of the whole. So many experts that a
step for each would make a file of hundreds of thousands of nodes are run at once, on the rows that any token uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeify.export.onnx.body_choice import gates, mask, values
from moeify.export.onnx.body_experts import FINE, fine_experts, gated_rows, neurons, routed_experts, split_experts
from moeify.export.onnx.body_integers import restored
from moeify.export.onnx.body_shape import DOMAIN, INTEGERS, BodyShape
from moeify.export.onnx.operations import Operations

if TYPE_CHECKING:
    import onnx_ir as ir

    Values = dict[str, ir.Value]

OPSET = 20
FLOAT = 1


def moe_function(shape: BodyShape, opset: int = OPSET) -> ir.Function:
    """The function for layers of that shape; its `overload` is `shape.overload`. opset: of the model, 20 or later."""
    import onnx_ir as ir

    inputs = [ir.Value(name=name) for name in shape.inputs]
    given = {name: value for name, value in zip(shape.inputs, inputs) if name in shape.given}
    op = Operations()
    v = _in_float(op, shape, given)
    y = _restore(op, given["x"], v["down"], _layer(op, shape, v))
    y.name = "y"
    graph = ir.Graph(inputs, [y], nodes=op.nodes, opset_imports={"": opset}, name=shape.overload)
    attributes = [
        ir.Attr("activation", ir.AttributeType.STRING, None),
        ir.Attr("gate_rule", ir.AttributeType.STRING, "one"),
        ir.Attr("normalize", ir.AttributeType.INT, 0),
        *([ir.Attr("bits", ir.AttributeType.INT, None)] if shape.bits else []),
    ]
    return ir.Function(DOMAIN, shape.operator, shape.overload, graph=graph, attributes=attributes)


def _in_float(op: Operations, shape: BodyShape, given: Values) -> Values:
    """Computes in float32 whatever the type of x is; a cast from float32 costs nothing, runtimes drop it."""
    whole = {"offsets", "k", *(INTEGERS if shape.bits else ())}
    v = {name: value if name in whole else op("Cast", value, to=FLOAT) for name, value in given.items()}
    for name in INTEGERS if shape.bits else ():
        if name in v:
            v[name] = restored(op, v[name], v.pop(f"{name}_scale"), shape.bits)
    for name in ("x", "scores"):
        v[name] = op("Flatten", v[name], axis=-1)
    return v


def _restore(op: Operations, x: ir.Value, down: ir.Value, y: ir.Value) -> ir.Value:
    """[tokens, output] => [..., output] in the type of x."""
    dims = op("Concat", op("Shape", x, end=-1), op("Shape", down, start=1), axis=0)
    return op("CastLike", op("Reshape", y, dims, allowzero=1), x)


def _layer(op: Operations, shape: BodyShape, v: Values) -> ir.Value:
    """y [tokens, output]."""
    value = values(op, shape, v["scores"])
    if not {"k", "threshold"} & shape.present:
        return _always(op, shape, v, gated_rows(op, shape, v, gates(op, shape, value, None)))
    on = mask(op, shape, v, value)
    if shape.experts >= FINE:
        return _always(op, shape, v, _plus_idle(op, shape, v, on, fine_experts(op, shape, v, on, gates(op, shape, value, on))))
    shared, experts = split_experts(op, shape, v)
    start = None if shared is None else neurons(op, shape, v["x"], shared)
    y = _always(op, shape, v, _plus_idle(op, shape, v, on, start))
    return routed_experts(op, shape, v, experts, on, gates(op, shape, value, on), y)


def _plus_idle(op: Operations, shape: BodyShape, v: Values, on: ir.Value, y: ir.Value | None) -> ir.Value | None:
    """y (None: zeros) + the vectors of idle experts; on [tokens, experts]."""
    if "idle" not in shape.present:
        return y
    missed = op("MatMul", op("Cast", op("Not", on), to=FLOAT), v["idle"])
    return missed if y is None else op("Add", y, missed)


def _always(op: Operations, shape: BodyShape, v: Values, y: ir.Value | None) -> ir.Value:
    """y (None: zeros) + what every token gets: the low-rank term and the output bias. [tokens, output]."""
    if "low_rank_in" in shape.present:
        term = op("MatMul", op("Gemm", v["x"], v["low_rank_in"], transB=1), v["low_rank_out"])
        y = term if y is None else op("Add", y, term)
    if y is None:
        y = op.full(0.0, op("Concat", op("Shape", v["x"], end=1), op("Shape", v["down"], start=1), axis=0))
    return op("Add", y, v["output_bias"]) if "output_bias" in shape.present else y
