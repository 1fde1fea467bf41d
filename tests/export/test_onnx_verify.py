"""What counts as agreement between ONNX Runtime and the eager model."""

from __future__ import annotations

import numpy as np
import pytest

from moeify.export.onnx.distance import compare


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_never_a_near_tie(bad: float) -> None:
    want = np.ones((100, 4), dtype=np.float32)
    got = want.copy()
    got[3] = bad
    assert compare("rows", [want], [got], "float32", flips=0.25).distance == np.inf
    got[3] = 7.0
    found = compare("rows", [want], [got], "float32", flips=0.25)
    assert (found.distance, found.flipped) == (0.0, 0.01)
