"""A model that is one `moeify::MoE` or `moeify::QMoE` node with its body, for the inputs and attributes of a case."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from moe_cases import Case
from moeify.export.onnx.body import OPSET, moe_function
from moeify.export.onnx.body_contrib import CONTRIB
from moeify.export.onnx.body_shape import DOMAIN, OPTIONAL, VERSION, BodyShape
from moeify.export.onnx.forms import Form
from moeify.runtime.native import register

FLOATS = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
#: Inputs whose type does not follow that of x.
_OWN_TYPE = ("offsets", "k", "threshold", "selection_bias")


def _own_type(name: str, array: NDArray[Any]) -> bool:
    return name in _OWN_TYPE or array.dtype == np.uint8


def body_shape(case: Case) -> BodyShape:
    offsets = case.inputs["offsets"]
    present = frozenset(case.inputs) & frozenset(OPTIONAL)
    return BodyShape(len(offsets) - 1, **case.attributes, shared=bool(offsets[0]), present=present)


def node_model(case: Case, dtype: str = "float32", body: bool = True, opset: int = OPSET, form: Form | None = None) -> ir.Model:
    """Graph inputs x and scores, float32 with symbolic leading dims, cast to dtype; every other input is an initializer."""
    shape = body_shape(case)
    function = moe_function(shape, opset, form)
    lead = [f"d{i}" for i in range(len(case.variant.lead))]
    inputs = [ir.val(name, ir.DataType.FLOAT, [*lead, case.inputs[name].shape[-1]]) for name in ("x", "scores")]
    casts = [ir.node("Cast", [value], {"to": FLOATS[dtype]}) for value in inputs]
    values = {str(value.name): cast.outputs[0] for value, cast in zip(inputs, casts)}
    weights = {}
    for name, array in case.inputs.items():
        if name not in values:
            kind = ir.DataType.from_numpy(array.dtype) if _own_type(name, array) else FLOATS[dtype]
            weights[name] = ir.val(name, const_value=ir.tensor(array.astype(kind.numpy()), name=name))
    attributes: dict[str, Any] = case.attributes | {"normalize": int(case.attributes["normalize"])}
    operands = [(values | weights).get(name) for name in shape.inputs]
    node = ir.node(shape.operator, operands, attributes, domain=DOMAIN, overload=function.overload)
    back = ir.node("Cast", [node.outputs[0]], {"to": ir.DataType.FLOAT})
    y = back.outputs[0]
    y.name, y.dtype, y.shape = "y", ir.DataType.FLOAT, ir.Shape([*lead, case.variant.output])
    imports = {"": opset, DOMAIN: VERSION, CONTRIB: 1}
    nodes = [*casts, node, back]
    graph = ir.Graph(inputs, [y], nodes=nodes, initializers=list(weights.values()), opset_imports=imports, name="g")
    return ir.Model(graph, ir_version=10, functions=[function] if body else [])


def node_session(model: ir.Model, threads: int = 1, native: bool = False) -> Any:
    """A session of ONNX Runtime on the CPU: the stock one, or with the native library."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # tests of faults would fill the terminal
    if native:
        register(options)
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_model(model: ir.Model, case: Case, threads: int = 1, native: bool = False) -> NDArray[np.float64]:
    """y from the case's x and scores."""
    return np.asarray(run_session(node_session(model, threads, native), case)).astype(np.float64)


def run_session(session: Any, case: Case) -> NDArray[np.float32]:
    return np.asarray(session.run(None, {name: case.inputs[name] for name in ("x", "scores")})[0])


def rounded(case: Case, dtype: str) -> Case:
    """The same case with every float as that type holds it."""
    kind = ir.DataType[dtype.upper()].numpy()
    round_ = {
        n: a if _own_type(n, a) or a.dtype != np.float32 else a.astype(kind).astype(np.float32) for n, a in case.inputs.items()
    }
    return replace(case, inputs=round_)
