"""Matrices of floats => integers with scales: to the nearest, symmetric (docs/quantisation.md)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeify.errors import ConversionError
from moeify.export.onnx.body_shape import BLOCK
from moeify.export.onnx.report import StoredMatrix

#: The largest integer of that many bits; the value below -largest is not used.
LARGEST = {8: 127, 4: 7}


@dataclass(frozen=True, eq=False)
class Rounded:
    """A matrix [rows, width]. values: int8 [rows, width] in -LARGEST .. LARGEST; scale: float32 [rows, blocks], a block is a
    row in 8 bits and 32 columns of it in 4. A weight is value times scale."""

    bits: int
    values: NDArray[np.int8]
    scale: NDArray[np.float32]

    @property
    def unsigned(self) -> NDArray[np.uint8]:
        """As QMoE and MatMulNBits store it, zero in the middle: [rows, width] in 8 bits, [rows, width / 2] in 4, the even
        column in the low half of a byte."""
        if self.bits == 8:
            return (self.values.astype(np.int16) + 128).astype(np.uint8)
        nibbles = (self.values + 8).astype(np.uint8)
        return np.asarray(nibbles[:, 0::2] | (nibbles[:, 1::2] << 4))

    @property
    def restored(self) -> NDArray[np.float32]:
        """[rows, width]."""
        rows, blocks = self.scale.shape
        parts = self.values.reshape(rows, blocks, self.values.shape[1] // blocks).astype(np.float32)
        return np.asarray(parts * self.scale[:, :, None]).reshape(self.values.shape)


def rounded(matrix: NDArray[np.float32], bits: int) -> Rounded:
    """matrix [rows, width]; in 4 bits the width is a multiple of BLOCK. A block of zeros has the scale 0."""
    rows, width = matrix.shape
    blocks = 1 if bits == 8 else width // BLOCK
    parts = matrix.reshape(rows, blocks, width // blocks)
    scale = (np.abs(parts).max(axis=-1, initial=0.0) / LARGEST[bits]).astype(np.float32)
    # A scale may round down: what lies beyond the largest integer by that is cut off.
    steps = parts / np.where(scale == 0, np.float32(1), scale)[:, :, None]
    values = np.clip(np.rint(steps), -LARGEST[bits], LARGEST[bits]).astype(np.int8)
    return Rounded(bits, values.reshape(rows, width), scale)


def stored_matrix(name: str, form: str, matrix: NDArray[np.float32], parts: Rounded) -> StoredMatrix:
    """What the report says of it. Raises ConversionError where a weight is further from its float than rounding takes it: a
    scale that is wrong in one place hardly shows in what a whole model gives."""
    blocks = matrix.reshape(*parts.scale.shape, -1)
    half = np.abs(blocks).max(axis=-1, initial=0.0, keepdims=True) / LARGEST[parts.bits] / 2
    off = np.abs(parts.restored.reshape(blocks.shape) - blocks)
    if (far := float((off - 1.001 * half).max(initial=0.0))) > 0:
        raise ConversionError(f"{name}: a weight is {far:.1e} further from the model's than {parts.bits} bits take it")
    return StoredMatrix(name, form, parts.bits, relative_error(matrix, parts.restored))


def relative_error(matrix: NDArray[np.float32], stored: NDArray[np.float32]) -> float:
    """The norm of the difference / the norm of the matrix; 0 for a matrix of zeros."""
    size = float(np.linalg.norm(matrix.astype(np.float64)))
    return float(np.linalg.norm(stored.astype(np.float64) - matrix)) / size if size else 0.0
