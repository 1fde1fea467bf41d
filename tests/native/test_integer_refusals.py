"""What the native kernel of `moeify::QMoE` refuses beside what that of `moeify::MoE` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from moe_cases import VARIANTS, Case, random_case
from moe_node import node_model, node_session
from native.refused_node import Arrays, absent, refusal, run_with, shaped, valued
from qmoe_reference import quantised


def case_of(bits: int) -> Case:
    """output 5 and hidden 6 in 8 bits, 32 and 64 in 4; 4 experts, 18 rows, rank 2, x [2, 4, hidden]."""
    variant = VARIANTS["everything"]
    variant = replace(variant, hidden=64, output=32) if bits == 4 else variant
    return quantised(random_case(np.random.default_rng(0), variant), bits)


SHAPES: dict[str, tuple[int, Callable[[Arrays], object], str]] = {
    "a scale for all rows": (8, shaped("up_scale", 1, 1), "up_scale has the shape [1, 1]: [rows, 1] is [18, 1]"),
    "scales as a vector": (8, shaped("down_scale", 18), "down_scale has the shape [18]: [rows, 1] is [18, 1]"),
    "gate without its scale": (8, absent("gate_scale"), "gate and gate_scale go together"),
    "a scale without its gate": (8, absent("gate"), "gate_bias is given without gate"),
    "scales in blocks": (8, shaped("gate_scale", 18, 2), "gate_scale has the shape [18, 2]: [rows, 1] is [18, 1]"),
    "down of other rows": (8, shaped("down", 17, 5), "down has the shape [17, 5]: [rows, output] is [18, 5]"),
    "k above the experts": (8, valued("k", 5), "k is 5: it goes from 1 to the 4 experts"),
    "a scale a row in 4 bits": (4, shaped("up_scale", 18, 1), "up_scale has the shape [18, 1]: [rows, hidden / 32] is [18, 2]"),
    "up in 8 bits": (4, shaped("up", 18, 64), "up has the shape [18, 64]: [rows, hidden / 2] is [18, 32]"),
    "output that is no block": (
        4,
        shaped("down", 18, 5),
        "4 bits take hidden and output in blocks of 32: 10 is no multiple",
    ),
}  # fmt: skip


@pytest.mark.parametrize("caption", SHAPES)
def test_inputs_that_do_not_fit(caption: str) -> None:
    bits, change, message = SHAPES[caption]
    case = case_of(bits)
    arrays = dict(case.inputs)
    change(arrays)
    if caption.startswith("output that"):
        arrays |= {"output_bias": np.zeros(10, np.float32), "idle": np.zeros((4, 10), np.float32)}
        arrays["low_rank_out"] = np.zeros((2, 10), np.float32)
    assert f"moeify::QMoE: {message}" in refusal(arrays, case)


@pytest.mark.parametrize("bits", [0, 2, 16])
def test_other_bits(bits: int) -> None:
    model = node_model(case_of(8), body=False)
    node = next(node for node in model.graph if node.domain == "moeify")
    node.attributes.add(ir.AttrInt64("bits", bits))
    with pytest.raises(Exception, match=rf"moeify::QMoE: bits is {bits}: it is 8 or 4"):
        node_session(model, native=True)


def test_a_sum_that_an_integer_does_not_hold() -> None:
    case = case_of(8)
    arrays: dict[str, Any] = dict(case.inputs)
    wide = 131073
    arrays |= {name: np.zeros((18, wide), np.uint8) for name in ("up", "gate")} | {"x": np.zeros((2, 4, wide), np.float32)}
    arrays["low_rank_in"] = np.zeros((2, wide), np.float32)
    message = "moeify::QMoE: sums of 131073 products: hidden and the rows of an expert are at most 131072"
    assert message in refusal(arrays, case)


@pytest.mark.sampled
@pytest.mark.parametrize("bits", [8, 4])
def test_any_change_of_any_shape_is_an_error_or_an_answer(bits: int) -> None:
    rng = np.random.default_rng(1)
    outcomes = set()
    case = case_of(bits)
    for _ in range(150):
        arrays = dict(case.inputs)
        for name in rng.choice(sorted(set(arrays) - {"x", "scores"}), size=rng.integers(0, 3), replace=False):
            rank = arrays[name].ndim if rng.random() < 0.7 else int(rng.integers(0, 4))
            arrays[name] = np.resize(arrays[name], rng.integers(0, 9, size=rank)).astype(arrays[name].dtype)
        try:
            y = run_with(arrays, case)
        except Exception as error:
            outcomes.add("refused" if "moeify::QMoE" in str(error) else "refused by ONNX Runtime")
        else:
            assert y.shape[:-1] == arrays["x"].shape[:-1]
            outcomes.add("answered")
    assert {"refused", "answered"} <= outcomes
