"""The function body of `moeify::MoE` in stock ONNX Runtime against the float64 reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from moe_cases import VARIANTS, Case, Variant, cases, random_case
from moe_node import node_model, run_model
from moe_reference import moe

from moeify.errors import UsageError
from moeify.export.onnx.body_shape import BodyShape


def assert_equal_to_reference(case: Case, dtype: str = "float32", bound: float = 5e-6) -> None:
    expected = moe(**case.inputs, **case.attributes)
    found = run_model(node_model(case, dtype), case)
    assert found.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound * scale)


@pytest.mark.parametrize("caption", VARIANTS)
def test_body_gives_what_the_reference_gives(caption: str) -> None:
    assert_equal_to_reference(random_case(np.random.default_rng(0), VARIANTS[caption]))


@given(case=cases())
@settings(max_examples=60, deadline=None)
def test_body_gives_what_the_reference_gives_for_any_case(case: Case) -> None:
    assert_equal_to_reference(case)
