"""The schema of `moeify::MoE` for the package onnx: the exporter and onnx.checker ask for it."""

from __future__ import annotations

from moeify.export.onnx.body_shape import DOMAIN, INPUTS, OPERATOR, REQUIRED, VERSION

_INT64, _FLOAT32 = "tensor(int64)", "tensor(float)"
_FLOATS = [_FLOAT32, "tensor(float16)", "tensor(bfloat16)"]
_TYPES = {"offsets": _INT64, "k": _INT64, "threshold": _FLOAT32, "selection_bias": _FLOAT32}


def register_schema() -> None:
    """Makes the operator known to onnx.defs; does nothing the second time."""
    import onnx

    if onnx.defs.has(OPERATOR, domain=DOMAIN):
        return
    schema = onnx.defs.OpSchema
    option = schema.FormalParameterOption
    onnx.defs.register_schema(
        schema(
            OPERATOR,
            DOMAIN,
            VERSION,
            doc="A Mixture-of-Experts layer: docs/moe-layer.md.",
            inputs=[
                schema.FormalParameter(
                    name, _TYPES.get(name, "T"), param_option=option.Single if name in REQUIRED else option.Optional
                )
                for name in INPUTS
            ],
            outputs=[schema.FormalParameter("y", "T")],
            type_constraints=[("T", _FLOATS, "The type of x, y and the weights.")],
            attributes=[
                schema.Attribute("activation", schema.AttrType.STRING, required=True),
                schema.Attribute("gate_rule", onnx.helper.make_attribute("gate_rule", "one")),
                schema.Attribute("normalize", onnx.helper.make_attribute("normalize", 0)),
            ],
        )
    )
