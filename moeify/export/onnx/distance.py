"""How far ONNX Runtime is from the eager model, and how far it may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeify.errors import ConversionError
from moeify.export.onnx.report import Check

Array = NDArray[Any]

#: Largest difference / largest value where no expert is chosen, or all are. Trained weights are harsher than random ones:
#: SmolLM2-135M comes to 4e-6, small random models to 5e-7; in int8 to 0.25 dense, as its perplexity grows by 4 %.
#: What integers must not be is held more closely weight by weight: none is further off than half a step.
BOUNDS = {"float32": 3e-5, "float16": 2e-2, "fp16": 5e-3, "int8": 0.5, "int4": 0.7}
#: So many times more where experts are chosen: gates differ a little too (SmolLM2-135M, 4 of 16 random experts: 3e-5).
CHOOSING = 3
#: The largest share of tokens that may differ because scores nearly tied.
FLIPS = 0.25


def compare(name: str, expected: Sequence[Array], found: Sequence[Array], dtype: str, flips: float) -> Check:
    """flips: the share of rows (tokens) that may lie beyond the bound, 0 where no choice is made.

    Raises ConversionError for other shapes and for values that are not finite where the model's are.
    """
    bound, distance, far, rows = BOUNDS[dtype] * (CHOOSING if flips else 1), 0.0, 0, 0
    for want, got in zip(expected, found, strict=True):
        if want.shape != got.shape:
            raise ConversionError(f"{name}: ONNX Runtime gives shape {got.shape}, the model {want.shape}")
        each = _row_distances(want, got)
        near = each[each <= bound]
        if not flips or len(each) - len(near) > flips * len(each) or not np.isfinite(each).all():
            near = each
        far, rows = far + len(each) - len(near), rows + len(each)
        distance = max(distance, float(near.max(initial=0.0)))
    return Check(name, distance, bound, far / max(1, rows))


def furthest(expected: Sequence[Array], found: Sequence[Array]) -> float:
    """The largest distance of a row of outputs of the same shapes."""
    return max(float(_row_distances(want, got).max(initial=0.0)) for want, got in zip(expected, found, strict=True))


def _row_distances(want: Array, got: Array) -> Array:
    """For each row (last axis): its largest difference / the largest value of all; infinite where got is not finite."""
    want, got = (array.astype(np.float64).reshape(-1, array.shape[-1] if array.ndim else 1) for array in (want, got))
    scale = float(np.abs(want, where=np.isfinite(want), out=np.zeros_like(want)).max(initial=0.0)) or 1.0
    with np.errstate(invalid="ignore"):
        difference = np.where(want == got, 0.0, np.abs(want - got))
    difference = np.where(np.isnan(want) & np.isnan(got), 0.0, np.nan_to_num(difference, nan=np.inf, posinf=np.inf))
    return np.asarray(difference.max(axis=-1, initial=0.0) / scale)
