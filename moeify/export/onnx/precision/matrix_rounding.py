"""Rounds the matrices of a graph one by one and keeps what the report says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from moeify.export.onnx.precision.rounding import Rounded, rounded, stored_matrix
from moeify.export.onnx.report import StoredMatrix

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray


class MatrixRounding:
    """importance: how much an error counts in each column of the matrices that an input goes into, by its name, and of those
    whose rows products add up over, by their own. stored: grows with each."""

    def __init__(self, importance: Mapping[str, NDArray[np.float32]]) -> None:
        self.importance = importance
        self.stored: list[StoredMatrix] = []

    def __call__(self, name: str, form: str, matrix: NDArray[np.float32], bits: int, by: ir.Value | None) -> Rounded:
        """matrix: [rows, width]. by: what its columns are multiplied with; the matrix, where products add up over its rows."""
        importance = None if by is None or bits == 8 else self.importance.get(str(by.name))
        parts = rounded(matrix, bits, importance)
        self.stored.append(stored_matrix(name, form, matrix, parts))
        return parts
