"""The function body of `moeify::MoE` in stock ONNX Runtime against the float64 reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from moe_cases import VARIANTS, Case, Variant, cases, random_case
from moe_node import body_shape, node_model, rounded, run_model
from moe_reference import moe
from moeify.errors import UsageError
from moeify.export.onnx.body import moe_function
from moeify.export.onnx.body_activations import BODY_ACTIVATIONS
from moeify.export.onnx.body_shape import INPUTS, BodyShape
from moeify.export.onnx.schema import register_schema
from moeify.ir.activations import ACTIVATIONS


def assert_equal_to_reference(case: Case, dtype: str = "float32", bound: float = 5e-6) -> None:
    expected = moe(**cast(dict[str, Any], case.inputs | case.attributes))
    found = run_model(node_model(case, dtype), case)
    assert found.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound * scale)


def case_of(variant: Variant, seed: int = 0) -> Case:
    return random_case(np.random.default_rng(seed), variant)


@pytest.mark.parametrize("caption", VARIANTS)
def test_body_gives_what_the_reference_gives(caption: str) -> None:
    assert_equal_to_reference(case_of(VARIANTS[caption]))


@given(case=cases())
@settings(max_examples=50, deadline=None)
def test_body_gives_what_the_reference_gives_for_any_case(case: Case) -> None:
    assert_equal_to_reference(case)


def test_body_knows_every_activation() -> None:
    assert set(BODY_ACTIVATIONS) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_gated_activation(name: str) -> None:
    assert_equal_to_reference(case_of(Variant(activation=name, gated=True, gate_bias=True, k=2)))


@pytest.mark.sampled
@pytest.mark.parametrize("k", [1, 2, 7, 20, 63, 64])
def test_equal_scores_choose_the_lower_index(k: int) -> None:
    case = case_of(Variant(lead=(40,), sizes=(1,) * 64, k=k, ties=True, idle=True))
    assert_equal_to_reference(case)


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 4e-3), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("caption", ["everything", "top-2, softmax, normalised", "threshold, sigmoid", "all on, softmax"])
def test_body_in_low_precision(caption: str, dtype: str, bound: float) -> None:
    assert_equal_to_reference(rounded(case_of(VARIANTS[caption]), dtype), dtype, bound)


@pytest.mark.parametrize("threads", [1, 2])
def test_idle_experts_are_not_computed(threads: int) -> None:
    """Every token chooses experts 1 and 3; the weights of the others are NaN, which would spread over any sum."""
    case = case_of(Variant(lead=(9,), sizes=(3, 2, 4, 5), k=2, shared=2, gated=True, up_bias=True, output_bias=True))
    scores = np.tile(np.array([0, 1, 0, 1], dtype=np.float32), (9, 1))
    inputs = case.inputs | {"scores": scores}
    expected = moe(**cast(dict[str, Any], inputs | case.attributes))
    offsets = inputs["offsets"]
    for name in ("up", "gate", "down", "up_bias"):
        inputs[name] = inputs[name].copy()
        for e in (0, 2):
            inputs[name][offsets[e] : offsets[e + 1]] = np.nan
    poisoned = replace(case, inputs=inputs)
    np.testing.assert_allclose(run_model(node_model(poisoned), poisoned, threads), expected, atol=1e-5)


def test_nan_in_one_token_stays_in_that_token() -> None:
    case = case_of(Variant(lead=(4,), k=2, output_bias=True))
    for name in ("x", "scores"):
        case.inputs[name][1] = np.nan
    found = run_model(node_model(case), case)
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2, 3]]).all()


def test_weights_are_folded_into_one_matrix_an_expert(tmp_path: Any) -> None:
    """ONNX Runtime keeps neither the whole matrices nor a Split of them."""
    import onnxruntime as ort

    model = node_model(case_of(Variant(hidden=8, output=8, sizes=(16, 16, 32), k=1)))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimized.onnx").graph
    matrices = sorted(tuple(tensor.dims) for tensor in graph.initializer if len(tensor.dims) == 2)
    assert matrices == [(16, 8)] * 4 + [(32, 8)] * 2
    assert sum(node.op_type == "Split" for node in graph.node) == 2  # of the tokens and of their x


def test_checker_accepts_node_and_body() -> None:
    register_schema()
    model = ir.to_proto(node_model(case_of(VARIANTS["everything"])))
    onnx.checker.check_model(model, full_check=True)


def test_schema_names_the_inputs_of_the_page() -> None:
    register_schema()
    register_schema()
    schema = onnx.defs.get_schema("MoE", 1, "moeify")
    assert tuple(value.name for value in schema.inputs) == INPUTS
    assert sorted(schema.attributes) == ["activation", "gate_rule", "normalize"]


def test_one_overload_a_shape() -> None:
    shapes = {body_shape(case_of(variant)) for variant in VARIANTS.values()}
    assert len({shape.overload for shape in shapes}) == len(shapes)
    full = body_shape(case_of(VARIANTS["everything"]))
    assert (
        moe_function(full).overload
        == full.overload
        == (
            "4x-gelu-tanh-sigmoid-normalized-shared-k-threshold-gate-up_bias-gate_bias-selection_bias-output_bias-idle-"
            "low_rank_in-low_rank_out"
        )
    )


def test_two_layers_of_one_shape_share_a_body_at_other_sizes() -> None:
    small, large = case_of(Variant(k=1)), case_of(Variant(hidden=3, output=7, sizes=(1, 9, 2, 2), k=3))
    assert body_shape(small) == body_shape(large)
    assert_equal_to_reference(small)
    assert_equal_to_reference(large)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"experts": 0, "activation": "relu"}, "experts is 0: it takes at least 1"),
        ({"experts": 2, "activation": "rulu"}, "unknown activation 'rulu': did you mean 'relu'?"),
        ({"experts": 2, "activation": "relu", "gate_rule": "max"}, "gate_rule is 'max': choose one of one, softmax, sigmoid"),
        (
            {"experts": 2, "activation": "relu", "present": frozenset({"bias"})},
            "not an optional input of moeify::MoE: bias",
        ),
    ],
    ids=["no expert", "unknown activation", "unknown gate rule", "unknown input"],
)
def test_shapes_that_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        BodyShape(**arguments)
    assert str(caught.value) == message
