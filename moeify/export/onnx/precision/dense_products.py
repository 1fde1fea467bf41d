"""MatMul and Gemm nodes on constant matrices => products with integers of ONNX Runtime's own operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from moeify.export.onnx.body_shape import BLOCK
from moeify.export.onnx.interface import HELD
from moeify.export.onnx.operations import Operations
from moeify.export.onnx.precision.constants import constant_matrix, initializer
from moeify.export.onnx.precision.rounding import Rounded

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from moeify.export.onnx.precision.matrix_rounding import MatrixRounding

MICROSOFT = "com.microsoft"
#: Tokens whose values are all smaller count as zeros.
_SMALLEST = 1e-30


class DenseProducts:
    """Replaces products one by one; x that several products read is made ready once, a matrix in several is stored once."""

    def __init__(self, model: ir.Model, bits: int, rounding: MatrixRounding) -> None:
        self.model, self.bits, self.rounding = model, bits, rounding
        self.replaced = 0
        self._ready: dict[tuple[ir.Value, Any], tuple[ir.Value, ir.Value]] = {}
        self._stored: dict[tuple[ir.Value, bool], list[ir.Value]] = {}

    def replace(self, node: ir.Node) -> None:
        """Leaves nodes as they are that are no product of a float32 matrix of two dimensions or more with a constant one."""
        import onnx_ir as ir

        matrix = weights_of(node)
        if matrix is None:
            return
        x, graph = node.inputs[0], node.graph
        if x is None or graph is None or not (x.shape is None or len(x.shape) >= 2):
            return
        op = Operations()
        product = self._product8 if self.bits == 8 else self._product4
        y = product(op, x, node, matrix)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            y = op("Add", y, node.inputs[2])
        self.replaced += 1
        ir.convenience.replace_nodes_and_values(graph, node, [node], list(op.nodes), node.outputs, [y])

    def _product8(self, op: Operations, x: ir.Value, node: ir.Node, matrix: NDArray[np.float32]) -> ir.Value:
        """ONNX Runtime quantises x with one scale for all tokens: each is divided by its own largest value first."""
        values, scale = self._weights(node, matrix, lambda w: [w.values.T, w.scale[:, 0]])
        if (x, node.graph) not in self._ready:
            largest = op("ReduceMax", op("Abs", x), op.constant([-1]), keepdims=1)
            largest = op("Max", largest, op.constant(_SMALLEST))
            self._ready[x, node.graph] = op("Div", x, largest), largest
        unit, largest = self._ready[x, node.graph]
        return op("Mul", op("DynamicQuantizeMatMul", unit, values, scale, domain=MICROSOFT), largest)

    def _product4(self, op: Operations, x: ir.Value, node: ir.Node, matrix: NDArray[np.float32]) -> ir.Value:
        """Blocks of 32; x is rounded to 8 bits in blocks of 32, too (accuracy_level 4)."""
        width, rows = matrix.shape
        values, scale = self._weights(node, matrix, lambda w: [w.unsigned.reshape(rows, w.scale.shape[1], BLOCK // 2), w.scale])
        sizes = {"K": width, "N": rows, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
        return op("MatMulNBits", x, values, scale, domain=MICROSOFT, **sizes)

    def _weights(
        self, node: ir.Node, matrix: NDArray[np.float32], form: Callable[[Rounded], list[NDArray[Any]]]
    ) -> list[ir.Value]:
        """The initializers of the rounded matrix [width, rows]."""
        weights = node.inputs[1]
        assert weights is not None
        key = weights, node.attributes.get_int("transB", 0) == 1
        if key not in self._stored:
            padded = np.pad(matrix.T, ((0, 0), (0, -len(matrix) % BLOCK))) if self.bits == 4 else matrix.T
            name, operator = name_of(node), "DynamicQuantizeMatMul" if self.bits == 8 else "MatMulNBits"
            parts = self.rounding(name, f"{MICROSOFT}::{operator}", padded, self.bits, node.inputs[0])
            arrays = zip(("integers", "scale"), form(parts))
            self._stored[key] = [initializer(self.model, f"{name}.{end}", array) for end, array in arrays]
        return self._stored[key]


def weights_of(node: ir.Node) -> NDArray[np.float32] | None:
    """The constant matrix [width, rows] that a node multiplies x with; None for other nodes."""
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return None
    matrix, attributes = constant_matrix(node.inputs[1]), node.attributes
    if node.op_type == "MatMul" or matrix is None:
        return matrix
    if attributes.get_int("transA", 0) or attributes.get_float("alpha", 1.0) != 1 or attributes.get_float("beta", 1.0) != 1:
        return None
    return matrix.T if attributes.get_int("transB", 0) else matrix


def name_of(node: ir.Node) -> str:
    """The matrix's own name, else that of the module where the product was made, else of the product."""
    weights = node.inputs[1]
    own = weights.name if weights is not None and weights.name else "val_"
    if not own.startswith("val_"):
        return own
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    modules = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
    module = modules[-2].removeprefix(f"{HELD}.") if len(modules) > 1 else ""
    return module or node.outputs[0].name or own
