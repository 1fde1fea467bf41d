"""The bodies of `moeify::MoE` and `moeify::QMoE` (docs/moe-layer.md) in standard ONNX operators: they run in any ONNX runtime.

How the chosen experts are computed is the body's form (moeify.export.onnx.forms); the values are the same up to the order of
sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeify.export.onnx.body_choice import gates, mask, values
from moeify.export.onnx.body_contrib import CONTRIB, keeps_integers
from moeify.export.onnx.body_experts import gated_rows, neurons, routed_integers, split_shared
from moeify.export.onnx.body_forms import Chosen, routed_experts
from moeify.export.onnx.body_integers import restored
from moeify.export.onnx.body_shape import DOMAIN, INTEGERS, BodyShape
from moeify.export.onnx.forms import Form, plain_form
from moeify.export.onnx.operations import Operations

if TYPE_CHECKING:
    import onnx_ir as ir

    Values = dict[str, ir.Value]

OPSET = 20
FLOAT = 1


def moe_function(shape: BodyShape, opset: int = OPSET, form: Form | None = None) -> ir.Function:
    """The function for layers of that shape. opset: of the model, 20 or later. form: None: what fits that many experts.

    Its `overload` tells shape and form; layers that agree in both share it.
    """
    import onnx_ir as ir

    form = form or plain_form(shape.experts)
    inputs = [ir.Value(name=name) for name in shape.inputs]
    given = {name: value for name, value in zip(shape.inputs, inputs) if name in shape.given}
    op = Operations()
    y = moe_operations(op, shape, form, given)
    y.name = "y"
    imports = {"": opset} | ({CONTRIB: 1} if "contrib" in form.kinds else {})
    name = overload(shape, form)
    graph = ir.Graph(inputs, [y], nodes=op.nodes, opset_imports=imports, name=name)
    attributes = [
        ir.Attr("activation", ir.AttributeType.STRING, None),
        ir.Attr("gate_rule", ir.AttributeType.STRING, "one"),
        ir.Attr("normalize", ir.AttributeType.INT, 0),
        *([ir.Attr("bits", ir.AttributeType.INT, None)] if shape.bits else []),
    ]
    return ir.Function(DOMAIN, shape.operator, name, graph=graph, attributes=attributes)


def overload(shape: BodyShape, form: Form) -> str:
    """The name of a body; equal for equal shapes and forms only."""
    return "-".join(part for part in (shape.overload, form.suffix if shape.choosing else "") if part)


def moe_operations(op: Operations, shape: BodyShape, form: Form, given: Values) -> ir.Value:
    """Writes the layer's operations; given: the inputs that are present. y [..., output], in the type of x."""
    v = _in_float(op, shape, given)
    kept = "contrib" in form.kinds and keeps_integers(shape)
    stored = {name: given[name] for name in given if kept and name.removesuffix("_scale") in INTEGERS}
    return _restore(op, given["x"], v["down"], _layer(op, shape, form, v, stored))


def _in_float(op: Operations, shape: BodyShape, given: Values) -> Values:
    """Computes in float32 whatever the type of x is; a cast from float32 costs nothing, runtimes drop it."""
    whole = {"offsets", "k", *(INTEGERS if shape.bits else ())}

    def cast(name: str, value: ir.Value) -> ir.Value:
        return value if name in whole or value.dtype == FLOAT else op("Cast", value, to=FLOAT)

    v = {name: cast(name, value) for name, value in given.items()}
    for name in INTEGERS if shape.bits else ():
        if name in v:
            v[name] = restored(op, v[name], v.pop(f"{name}_scale"), shape.bits)
    for name in ("x", "scores"):
        v[name] = op("Flatten", v[name], axis=-1)
    return v


def _restore(op: Operations, x: ir.Value, down: ir.Value, y: ir.Value) -> ir.Value:
    """[tokens, output] => [..., output] in the type of x."""
    y = op("Reshape", y, op("Concat", op("Shape", x, end=-1), op("Shape", down, start=1), axis=0), allowzero=1)
    return y if x.dtype == FLOAT else op("CastLike", y, x)


def _layer(op: Operations, shape: BodyShape, form: Form, v: Values, stored: Values) -> ir.Value:
    """y [tokens, output]. stored: the integers and scales that the form computes with."""
    value = values(op, shape, v["scores"])
    if not shape.choosing:
        return _always(op, shape, v, gated_rows(op, shape, v, gates(op, shape, value, None)))
    on = mask(op, shape, v, value)
    shared, rows = split_shared(op, shape, v)
    integers = routed_integers(op, shape, v, stored)
    y = routed_experts(op, shape, form, Chosen(v, rows, integers, on, gates(op, shape, value, on)))
    if shared is not None:
        y = op("Add", y, neurons(op, shape, v["x"], shared))
    return _always(op, shape, v, _plus_idle(op, shape, v, on, y))


def _plus_idle(op: Operations, shape: BodyShape, v: Values, on: ir.Value, y: ir.Value) -> ir.Value:
    """y + the vectors of idle experts; on [tokens, experts]."""
    if "idle" not in shape.present:
        return y
    return op("Add", y, op("MatMul", op("Cast", op("Not", on), to=FLOAT), v["idle"]))


def _always(op: Operations, shape: BodyShape, v: Values, y: ir.Value) -> ir.Value:
    """y + what every token gets: the low-rank term and the output bias. [tokens, output]."""
    if "low_rank_in" in shape.present:
        y = op("Add", y, op("MatMul", op("Gemm", v["x"], v["low_rank_in"], transB=1), v["low_rank_out"]))
    return op("Add", y, v["output_bias"]) if "output_bias" in shape.present else y
