"""Matrices of floats => integers with scales (docs/quantisation.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeify.errors import ConversionError
from moeify.export.onnx.body_shape import BLOCK
from moeify.export.onnx.report import StoredMatrix

#: The largest integer of that many bits. In 4 bits the value below -7 is used as well, in 8 bits that below -127 is not.
LARGEST = {8: 127, 4: 7}
#: What a scale that is looked for may be, in units of the one that reaches the weight furthest from 0.
FACTORS = (1.1, 1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65)


@dataclass(frozen=True, eq=False)
class Rounded:
    """A matrix [rows, width]. values: int8 [rows, width], -127 .. 127 in 8 bits and -8 .. 7 in 4. scale: float32
    [rows, blocks]; a block is a row in 8 bits and 32 columns of it in 4, where it may be negative. Weights: value x scale."""

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
        return np.asarray(self._in_blocks(self.values).astype(np.float32) * self.scale[:, :, None]).reshape(self.values.shape)

    def distance(self, matrix: NDArray[np.float32]) -> float:
        """By how much a weight is further from the matrix's than rounding and cutting off take it; 0 where none is."""
        parts, (low, high) = self._in_blocks(matrix), _limits(self.bits)
        off = np.abs(np.clip(_steps(parts, self.scale), low, high) - self._in_blocks(self.values)) - 0.5005
        largest, reach = np.abs(parts).max(axis=-1, initial=0.0), np.abs(self.scale) * -low
        least, most = (1.0, 1.0) if self.bits == 8 else (FACTORS[-1], FACTORS[0])
        astray = np.maximum(least * largest - reach, reach - most * largest) - 1e-5 * largest
        return max(float((off * np.abs(self.scale)[:, :, None]).max(initial=0.0)), float(astray.max(initial=0.0)))

    def _in_blocks(self, array: NDArray[Any]) -> NDArray[Any]:
        return array.reshape(*self.scale.shape, -1)


def rounded(matrix: NDArray[np.float32], bits: int, importance: NDArray[np.float32] | None = None) -> Rounded:
    """To the nearest, each weight on its own. matrix [rows, width]; in 4 bits the width is a multiple of BLOCK.

    The scale of a block makes its weight that is furthest from 0 the last integer: in 4 bits the negative one, which is a step
    further out. A block of zeros has scale 0. importance [width], of 4 bits: how much a squared error counts in each column; of
    FACTORS times that scale the best for each block is taken, so that weights are cut off where a wider step would cost more.
    """
    rows, width = matrix.shape
    blocks = 1 if bits == 8 else width // BLOCK
    parts = matrix.reshape(rows, blocks, width // blocks)
    if bits == 8:
        scale = (np.abs(parts).max(axis=-1, initial=0.0) / LARGEST[bits]).astype(np.float32)
    else:
        furthest = np.abs(parts).argmax(axis=-1, keepdims=True)
        scale = (np.take_along_axis(parts, furthest, axis=-1)[:, :, 0] / _limits(bits)[0]).astype(np.float32)
        if importance is not None:
            scale = _searched(parts, scale, bits, importance.reshape(blocks, -1))
    return Rounded(bits, _values(parts, scale, bits).reshape(rows, width), scale)


def _limits(bits: int) -> tuple[int, int]:
    return -LARGEST[bits] - (bits == 4), LARGEST[bits]


def _searched(
    parts: NDArray[np.float32], start: NDArray[np.float32], bits: int, importance: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The scales [rows, blocks] of FACTORS times `start` with the least sum of importance [blocks, columns] times squared error
    of parts [rows, blocks, columns]."""
    best, least = start, np.full(start.shape, np.inf, dtype=np.float32)
    for factor in FACTORS:
        scale = start * np.float32(factor)
        off = _values(parts, scale, bits) * scale[:, :, None] - parts
        error = (np.square(off, out=off) * importance).sum(axis=-1)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best


def _values(parts: NDArray[np.float32], scale: NDArray[np.float32], bits: int) -> NDArray[np.int8]:
    # A scale may round down: what lies beyond the last integer by that is cut off.
    return np.clip(np.rint(_steps(parts, scale)), *_limits(bits)).astype(np.int8)


def _steps(parts: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(parts / np.where(scale == 0, np.float32(1), scale)[:, :, None])


def stored_matrix(name: str, form: str, matrix: NDArray[np.float32], parts: Rounded) -> StoredMatrix:
    """What the report says of it. Raises ConversionError where a weight is further from its float than rounding takes it: a
    scale that is wrong in one place hardly shows in what a whole model gives."""
    if (far := parts.distance(matrix)) > 0:
        raise ConversionError(f"{name}: a weight is {far:.1e} further from the model's than {parts.bits} bits take it")
    return StoredMatrix(name, form, parts.bits, relative_error(matrix, parts.restored))


def relative_error(matrix: NDArray[np.float32], stored: NDArray[np.float32]) -> float:
    """The norm of the difference / the norm of the matrix; 0 for a matrix of zeros."""
    size = float(np.linalg.norm(matrix.astype(np.float64)))
    return float(np.linalg.norm(stored.astype(np.float64) - matrix)) / size if size else 0.0
