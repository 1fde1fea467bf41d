"""Writing ONNX nodes one under the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir


class Operations:
    """A list of nodes that grows: `op("Gemm", a, b, transB=1)` adds one and gives its output."""

    def __init__(self) -> None:
        from onnx_ir import tape

        self._tape = tape.Tape()

    @property
    def nodes(self) -> Sequence[ir.Node]:
        return self._tape.nodes

    def __call__(self, name: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        return self._tape.op(name, inputs, attributes, domain=domain)

    def several(self, count: int, name: str, *inputs: ir.Value | None, **attributes: Any) -> list[ir.Value]:
        """A node with `count` outputs."""
        return list(self._tape.op_multi_out(name, inputs, attributes, num_outputs=count))

    def constant(self, value: int | float | Sequence[int]) -> ir.Value:
        """An int64 or (from a float) float32 constant; a sequence gives a 1-D tensor."""
        import onnx_ir as ir

        array = np.array(value, dtype=np.float32 if isinstance(value, float) else np.int64)
        return self("Constant", value=ir.tensor(array))

    def full(self, value: float, dims: ir.Value) -> ir.Value:
        """A float32 tensor of those dims (any may be 0: ONNX Runtime's Expand refuses that)."""
        import onnx_ir as ir

        return self("ConstantOfShape", dims, value=ir.tensor(np.array([value], dtype=np.float32)))

    def choose(
        self, condition: ir.Value, yes: Callable[[Operations], ir.Value], no: Callable[[Operations], ir.Value]
    ) -> ir.Value:
        """An If. yes, no: write the nodes of their branch and give its output; they may use the values written so far."""
        return self("If", condition, then_branch=self._branch("then_branch", yes), else_branch=self._branch("else_branch", no))

    @staticmethod
    def _branch(name: str, write: Callable[[Operations], ir.Value]) -> ir.Graph:
        import onnx_ir as ir

        op = Operations()
        output = write(op)
        for i, value in enumerate(value for node in op.nodes for value in node.outputs):
            value.name = f"{name}_{i}"  # unlike any name outside: a branch sees those
        return ir.Graph([], [output], nodes=op.nodes, name=name)
