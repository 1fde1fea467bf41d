"""Inputs and attributes that the native kernel refuses: an error of ONNX Runtime with one clear sentence, never a crash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from moe_cases import Variant, random_case
from moe_node import node_model, node_session, run_session
from native.refused_node import Arrays, absent, everything, refusal, run_with, shaped, valued

SHAPES: dict[str, tuple[Callable[[Arrays], object], str]] = {
    "scores of other tokens": (shaped("scores", 2, 3, 4), "scores has the shape [2, 3, 4]: [.., experts] is [2, 4, 4]"),
    "scores of other experts": (shaped("scores", 2, 4, 3), "scores has the shape [2, 4, 3]: [.., experts] is [2, 4, 4]"),
    "up of another hidden": (shaped("up", 18, 7), "up has the shape [18, 7]: [rows, hidden] is [18, 6]"),
    "up as three dimensions": (shaped("up", 3, 6, 6), "up has the shape [3, 6, 6]: it is [rows, hidden]"),
    "down of other rows": (shaped("down", 17, 5), "down has the shape [17, 5]: [rows, output] is [18, 5]"),
    "down as a vector": (shaped("down", 18), "down has the shape [18]: it is [rows, output]"),
    "gate": (shaped("gate", 18, 5), "gate has the shape [18, 5]: [rows, hidden] is [18, 6]"),
    "up_bias": (shaped("up_bias", 17), "up_bias has the shape [17]: [rows] is [18]"),
    "gate_bias": (shaped("gate_bias", 1), "gate_bias has the shape [1]: [rows] is [18]"),
    "selection_bias": (shaped("selection_bias", 5), "selection_bias has the shape [5]: [experts] is [4]"),
    "output_bias": (shaped("output_bias", 6), "output_bias has the shape [6]: [output] is [5]"),
    "idle": (shaped("idle", 4, 6), "idle has the shape [4, 6]: [experts, output] is [4, 5]"),
    "low_rank_in": (shaped("low_rank_in", 2, 5), "low_rank_in has the shape [2, 5]: [rank, hidden] is [2, 6]"),
    "low_rank_out": (shaped("low_rank_out", 3, 5), "low_rank_out has the shape [3, 5]: [rank, output] is [2, 5]"),
    "k as a vector": (shaped("k", 2), "k has the shape [2]: it is a single value"),
    "threshold without value": (shaped("threshold", 0), "threshold has the shape [0]: it is a single value"),
    "no expert": (shaped("offsets", 1), "offsets has the shape [1]: there is no expert"),
    "offsets without value": (shaped("offsets", 0), "offsets has the shape [0]: there is no expert"),
    "offsets as a matrix": (shaped("offsets", 5, 1), "offsets has the shape [5, 1]: it is [experts + 1]"),
    "falling offsets": (
        valued("offsets", [3, 7, 6, 12, 18]),
        "offsets[2] is 6: offsets rise from 0 to the 18 rows of up",
    ),
    "negative offset": (valued("offsets", [-1, 7, 9, 12, 18]), "offsets[0] is -1: offsets rise from 0 to the 18 rows of up"),
    "offset too far": (
        valued("offsets", [3, 7, 9, 12, 2**62]),
        "offsets[4] is 4611686018427387904: offsets rise from 0 to the 18 rows of up",
    ),
    "offsets too short": (valued("offsets", [3, 7, 9, 12, 17]), "offsets ends with 17: up has 18 rows"),
    "k of 0": (valued("k", 0), "k is 0: it goes from 1 to the 4 experts"),
    "k above the experts": (valued("k", 5), "k is 5: it goes from 1 to the 4 experts"),
    "k out of all bounds": (valued("k", -(2**63)), "k is -9223372036854775808: it goes from 1 to the 4 experts"),
    "gate_bias alone": (absent("gate"), "gate_bias is given without gate"),
    "half of the low-rank term": (absent("low_rank_out"), "low_rank_in and low_rank_out go together"),
}


@pytest.mark.parametrize("caption", SHAPES)
def test_inputs_that_do_not_fit(caption: str) -> None:
    change, message = SHAPES[caption]
    arrays = everything().inputs
    change(arrays)
    assert f"moeify::MoE: {message}" in refusal(arrays)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"activation": "rulu"}, "activation is 'rulu', which this library does not know"),
        ({"activation": ""}, "activation is '', which this library does not know"),
        ({"gate_rule": "max"}, "gate_rule is 'max': it is one, softmax or sigmoid"),
        ({"normalize": 2}, "normalize is 2: it is 0 or 1"),
    ],
    ids=["unknown activation", "empty activation", "unknown gate rule", "normalize of 2"],
)
def test_attributes_that_are_not_in_the_tables(attributes: dict[str, Any], message: str) -> None:
    case = everything()
    model = node_model(case, body=False)
    node = next(node for node in model.graph if node.op_type == "MoE")
    for name, value in attributes.items():
        node.attributes.add(ir.AttrInt64(name, value) if isinstance(value, int) else ir.AttrString(name, value))
    with pytest.raises(Exception, match="moeify::MoE") as caught:
        node_session(model, native=True)
    assert f"moeify::MoE: {message}" in str(caught.value)


def test_absent_attributes_have_the_defaults_of_the_schema() -> None:
    case = random_case(np.random.default_rng(0), Variant(k=2))
    expected = run_session(node_session(node_model(case, body=False), native=True), case)
    model = node_model(case, body=False)
    node = next(node for node in model.graph if node.op_type == "MoE")
    for name in ("gate_rule", "normalize"):
        node.attributes.pop(name)
    np.testing.assert_array_equal(run_session(node_session(model, native=True), case), expected)


@pytest.mark.slow
def test_any_change_of_any_shape_is_an_error_or_an_answer() -> None:
    """Random shapes, some of them empty, in random inputs: whatever comes back, the process lives."""
    rng = np.random.default_rng(1)
    outcomes = set()
    for _ in range(300):
        arrays = everything().inputs
        for name in rng.choice(sorted(set(arrays) - {"x", "scores"}), size=rng.integers(0, 3), replace=False):
            rank = arrays[name].ndim if rng.random() < 0.7 else int(rng.integers(0, 4))
            arrays[name] = np.resize(arrays[name], rng.integers(0, 9, size=rank)).astype(arrays[name].dtype)
        for name in ("x", "scores"):  # of three dimensions, as the graph around the node says
            if rng.random() < 0.3:
                arrays[name] = np.resize(arrays[name], rng.integers(0, 9, size=3)).astype(np.float32)
        try:
            y = run_with(arrays)
        except Exception as error:
            outcomes.add("refused" if "moeify::MoE" in str(error) else "refused by ONNX Runtime")
        else:
            assert y.shape[:-1] == arrays["x"].shape[:-1]
            outcomes.add("answered")
    assert {"refused", "answered"} <= outcomes
