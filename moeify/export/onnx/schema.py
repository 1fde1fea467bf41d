"""The schemas of `moeify::MoE` and `moeify::QMoE` for the package onnx: the exporter and onnx.checker ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moeify.export.onnx.body_shape import (
    DOMAIN,
    INPUTS,
    INTEGERS,
    OPERATOR,
    QUANTISED,
    QUANTISED_INPUTS,
    REQUIRED,
    VERSION,
)

_INT64, _FLOAT32, _UINT8 = "tensor(int64)", "tensor(float)", "tensor(uint8)"
_FLOATS = [_FLOAT32, "tensor(float16)", "tensor(bfloat16)"]
_TYPES = {"offsets": _INT64, "k": _INT64, "threshold": _FLOAT32, "selection_bias": _FLOAT32}
_SCALES = ("up_scale", "down_scale")


def register_schema() -> None:
    """Makes the operators known to onnx.defs; does nothing the second time."""
    import onnx

    if onnx.defs.has(OPERATOR, domain=DOMAIN):
        return
    attribute = onnx.defs.OpSchema.Attribute
    bits = attribute("bits", onnx.defs.OpSchema.AttrType.INT, required=True)
    onnx.defs.register_schema(_schema(OPERATOR, INPUTS, REQUIRED, _TYPES, _FLOATS))
    types = _TYPES | dict.fromkeys(INTEGERS, _UINT8)
    onnx.defs.register_schema(_schema(QUANTISED, QUANTISED_INPUTS, (*REQUIRED, *_SCALES), types, [_FLOAT32], bits))


def _schema(
    operator: str, inputs: Sequence[str], required: Sequence[str], types: dict[str, str], floats: list[str], *more: Any
) -> Any:
    import onnx

    schema = onnx.defs.OpSchema
    option = schema.FormalParameterOption
    return schema(
        operator,
        DOMAIN,
        VERSION,
        doc="A Mixture-of-Experts layer: docs/moe-layer.md.",
        inputs=[
            schema.FormalParameter(
                name, types.get(name, "T"), param_option=option.Single if name in required else option.Optional
            )
            for name in inputs
        ],
        outputs=[schema.FormalParameter("y", "T")],
        type_constraints=[("T", floats, "The type of x, y and all floats without a type of their own.")],
        attributes=[
            schema.Attribute("activation", schema.AttrType.STRING, required=True),
            schema.Attribute("gate_rule", onnx.helper.make_attribute("gate_rule", "one")),
            schema.Attribute("normalize", onnx.helper.make_attribute("normalize", 0)),
            *more,
        ],
    )
