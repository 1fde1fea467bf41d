"""The body of `moeify::QMoE` in stock ONNX Runtime against the float64 reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from moe_cases import VARIANTS, Case, Variant, cases, random_case
from moe_node import body_shape, node_model, run_model
from moeify.errors import UsageError
from moeify.export.onnx.body_shape import QUANTISED_INPUTS, BodyShape
from moeify.export.onnx.forms import Form
from moeify.export.onnx.schema import register_schema
from qmoe_reference import qmoe, quantised


def assert_body_is_right(case: Case, form: Form | None = None) -> None:
    expected = qmoe(case)
    found = run_model(node_model(case, form=form), case)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * max(1.0, float(np.abs(expected).max(initial=0.0))))


@pytest.mark.parametrize("caption", [name for name in VARIANTS if not name.startswith("activation")])
def test_8_bits(caption: str) -> None:
    assert_body_is_right(quantised(random_case(np.random.default_rng(0), VARIANTS[caption]), 8))


@given(case=cases())
@settings(max_examples=25, deadline=None)
def test_8_bits_of_any_case(case: Case) -> None:
    assert_body_is_right(quantised(case, 8))


def variant(**options: Any) -> Variant:
    plain: dict[str, Any] = {"lead": (9,), "hidden": 16, "output": 16, "sizes": (8,) * 4, "k": 2}
    return Variant(**(plain | options))


#: What `com.microsoft::QMoE` computes, and what is restored to floats for `MoE`.
INTEGERS, FLOATS = (
    {
        "relu, biases": variant(activation="relu", up_bias=True, output_bias=True, shared=3),
        "identity, softmax": variant(activation="identity", gate_rule="softmax", normalize=True),
        "gated, biases, all that stands beside": variant(
            activation="silu", gated=True, up_bias=True, gate_bias=True, shared=5, idle=True, rank=2, gate_rule="sigmoid"
        ),
        "gated, one bias, threshold": variant(activation="silu", gated=True, up_bias=True, threshold=True),
        "one token": variant(lead=(1,), activation="silu", gated=True),
        "no token": variant(lead=(0,), activation="relu"),
    },
    {"gelu-tanh": variant(activation="gelu-tanh"), "silu, not gated": variant(activation="silu", up_bias=True)},
)


@pytest.mark.parametrize("form", [Form("contrib", size=8), Form("masked", "contrib", 5, 8)], ids=str)
@pytest.mark.parametrize("caption", [*INTEGERS, *FLOATS])
def test_8_bits_by_the_operator_of_onnx_runtime(caption: str, form: Form) -> None:
    case = quantised(random_case(np.random.default_rng(0), (INTEGERS | FLOATS)[caption]), 8)
    assert_body_is_right(case, form)
    operators = {node.op_type for function in node_model(case, form=form).functions.values() for node in function.all_nodes()}
    assert operators & {"MoE", "QMoE"} == {"QMoE" if caption in INTEGERS else "MoE"}


@pytest.mark.parametrize("bits", [8, 4])
def test_idle_experts_are_not_computed(bits: int) -> None:
    """Every token chooses experts 1 and 3; the scales of the others are NaN, which would spread over any sum."""
    plain = variant(hidden=32, output=32, activation="silu", gated=True, up_bias=True)
    case = quantised(random_case(np.random.default_rng(0), plain), bits)
    clean = replace(case, inputs=case.inputs | {"scores": np.tile(np.array([0, 1, 0, 1], dtype=np.float32), (9, 1))})
    broken = dict(clean.inputs)
    for name in ("up_scale", "gate_scale", "down_scale"):
        broken[name] = broken[name].copy()
        broken[name][[*range(8), *range(16, 24)]] = np.nan
    found = run_model(node_model(replace(clean, inputs=broken), form=Form("contrib", size=8)), clean)
    np.testing.assert_allclose(found, qmoe(clean), rtol=0, atol=1e-5)


#: hidden and output as 4 bits want them.
BLOCKS = {
    "top-2": Variant(hidden=32, output=64, k=2),
    "gated, shared, fine": Variant(hidden=64, output=32, sizes=(1,) * 130, shared=3, k=5, gated=True, activation="silu"),
    "everything": Variant(
        lead=(2, 4), hidden=96, output=32, sizes=(4, 2, 3, 6), shared=3, gated=True, up_bias=True, gate_bias=True,
        output_bias=True, k=3, threshold=True, gate_rule="sigmoid", normalize=True, selection_bias=True, idle=True, rank=2,
    ),
    "no token": Variant(lead=(0,), hidden=32, output=32, k=2),
}  # fmt: skip


@pytest.mark.parametrize("caption", BLOCKS)
def test_4_bits(caption: str) -> None:
    assert_body_is_right(quantised(random_case(np.random.default_rng(0), BLOCKS[caption]), 4))


def test_the_schema_names_the_inputs_of_the_node() -> None:
    register_schema()
    schema = onnx.defs.get_schema("QMoE", 1, "moeify")
    assert tuple(each.name for each in schema.inputs) == QUANTISED_INPUTS
    required = [each.name for each in schema.inputs if each.option == onnx.defs.OpSchema.FormalParameterOption.Single]
    assert required == ["x", "scores", "up", "up_scale", "down", "down_scale", "offsets"]
    model = node_model(quantised(random_case(np.random.default_rng(0), VARIANTS["everything"]), 8))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_bodies_of_other_bits_have_other_names() -> None:
    plain = random_case(np.random.default_rng(0), BLOCKS["everything"])
    names = [body_shape(case).overload for case in (plain, quantised(plain, 8), quantised(plain, 4))]
    assert len(set(names)) == 3
    with pytest.raises(UsageError) as caught:
        BodyShape(2, "relu", bits=2)
    assert str(caught.value) == "bits is 2: it is 8 or 4, or 0 for floats"
