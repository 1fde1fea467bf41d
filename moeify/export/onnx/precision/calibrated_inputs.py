"""Rounds by what products get to see: for each of their inputs the way that does best on tokens that were held out.

    y = W x    =>    y = (W diag(s)) (x / s)

8 bits: where a token is rounded by its largest value, large channels take the digits of the others; the weights take over what
they are divided by (SmoothQuant, Xiao et al. 2023, section 4). 4 bits: weights of large channels are rounded in smaller steps
(AWQ, Lin et al. 2024, section 3.2), and scales of blocks weigh each column's error by the mean square of its channel (as the
importance matrices of llama.cpp). Preserved by s: the function, up to the order of float operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moeify.export.onnx.body_shape import BLOCK
from moeify.export.onnx.operations import Operations
from moeify.export.onnx.precision.constants import initializer
from moeify.export.onnx.precision.input_readers import Reader, readers_of
from moeify.export.onnx.precision.product_inputs import ProductInput
from moeify.export.onnx.precision.rounding import rounded
from moeify.export.onnx.report import Calibrated

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

#: How much of the unevenness of channels goes to the weights: strengths to choose from, by bits.
STRENGTHS = {8: (0.5, 0.7), 4: (0.25, 0.5)}


@dataclass(frozen=True, eq=False)
class Way:
    """scale: s [width]. importance [width]: how much an error counts in each column of the weights; None: alike."""

    how: str
    scale: Array
    importance: Array | None = None


def calibrate(
    model: ir.Model, bits: int, spared: set[ir.Node], inputs: Mapping[str, ProductInput]
) -> tuple[list[Calibrated], dict[str, Array]]:
    """Changes inputs and matrices in place; gives what was chosen, and the importance of columns by the names of inputs.

    spared: nodes that stay float32. An input is left alone where a matrix has other readers too, or no whole blocks.
    """
    found, importance = [], {}
    for x, readers in readers_of(model, spared).items():
        seen = inputs.get(str(x.name))
        if seen is None or not all(reader.whole for reader in readers) or (bits == 4 and len(seen.largest) % BLOCK):
            continue
        ways = list(_ways(bits, seen, readers))
        errors = [_error(bits, seen.held, readers, way) for way in ways]
        best = min(range(len(ways)), key=errors.__getitem__)
        name = str(x.name) if (ways[best].scale == 1).all() else _smooth(model, x, readers, ways[best].scale)
        if (weights := ways[best].importance) is not None:
            importance[name] = weights
        found.append(Calibrated(f"input of {readers[0].name}", ways[best].how, errors[0], errors[best]))
    return found, importance


def _ways(bits: int, seen: ProductInput, readers: list[Reader]) -> Iterator[Way]:
    """Rounding to the nearest first: of equals the first is taken."""
    same = np.ones_like(seen.largest)
    yield Way("nearest", same)
    if bits == 8:
        weights = np.max([np.abs(reader.matrix).max(axis=0) for reader in readers if reader.rounded], axis=0)
        for strength in STRENGTHS[bits]:
            scale = _power(seen.largest, strength) / _power(weights, 1 - strength)
            yield Way(f"smoothed {strength:g}", _centred(scale))
    else:
        yield Way("weighted", same, seen.mean_square)
        for strength in STRENGTHS[bits]:
            scale = _centred(_power(np.sqrt(seen.mean_square), strength))
            yield Way(f"weighted, smoothed {strength:g}", scale, np.asarray(seen.mean_square / np.square(scale), np.float32))


def _power(values: Array, exponent: float) -> Array:
    """Of values from 0 on, none of which is taken for less than a hundred thousandth of the largest."""
    return np.asarray(np.maximum(values, max(1e-5 * float(values.max()), 1e-30)) ** exponent)


def _centred(scale: Array) -> Array:
    """With the geometric mean 1."""
    logarithms = np.log(scale.astype(np.float64))
    return np.asarray(np.exp(logarithms - logarithms.mean()), dtype=np.float32)


def _error(bits: int, held: Array, readers: list[Reader], way: Way) -> float:
    """The mean over matrices of the squared error of their products on `held` [tokens, width] / squared products."""
    x = np.asarray(held / way.scale)
    x = rounded(x, 8).restored if bits == 8 else x  # one scale a token
    errors = []
    for reader in readers:
        if reader.rounded:
            exact = held @ reader.matrix.T
            off = x @ rounded(reader.matrix * way.scale, bits, way.importance).restored.T - exact
            errors.append(float(np.square(off).sum()) / max(float(np.square(exact).sum()), 1e-30))
    return sum(errors) / len(errors)


def _smooth(model: ir.Model, x: ir.Value, readers: list[Reader], scale: Array) -> str:
    """Gives the name of x / scale."""
    import onnx_ir as ir

    op = Operations()
    even = op("Mul", x, initializer(model, f"{x.name}.smooth", 1 / scale))
    even.name = f"{x.name}.smoothed"
    model.graph.insert_before(readers[0].node, op.nodes)
    for reader in readers:
        matrix = reader.matrix * scale
        stored = np.ascontiguousarray(matrix.T if reader.transposed else matrix)
        if reader.value.producer() is None:
            reader.value.const_value = ir.tensor(stored, name=reader.value.name)
        else:
            reader.node.replace_input_with(reader.place, initializer(model, f"{reader.name}.smooth", stored))
        reader.node.replace_input_with(0, even)
    return str(even.name)
