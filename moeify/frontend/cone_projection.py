"""A projection: a value multiplied with a matrix of weights, in one form; and looking weights up behind placeholders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from moeify.frontend.cone_ops import is_layout, op_name, shape
from moeify.frontend.traced import Traced, live_tensor

_FLIPS = {"t", "transpose", "permute", "numpy_T", "mT"}


@dataclass(frozen=True, eq=False)
class Projection:
    """node = x M (+ bias), M of shape [width_in, width_out].

    x: what the multiplication reads, before any layout step. node: the output, bias included.
    weight, bias: paths in the model. in_out: the weight is stored as [in, out] (a Linear stores [out, in]).
    nodes: all nodes of it, steps on its weights included. axis: where the features of x and node stand: -1, or 1 for a
    convolution that sees one place at a time (kernel 1, stride 1, no padding). grouped: it works on groups of channels.
    """

    node: fx.Node
    x: fx.Node
    weight: str
    bias: str | None
    in_out: bool
    width_in: int
    width_out: int
    nodes: frozenset[fx.Node]
    axis: int = -1
    grouped: bool = False

    @property
    def parameters(self) -> tuple[str, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


@dataclass(frozen=True)
class Weights:
    traced: Traced
    model: nn.Module

    def tensor(self, node: Any) -> Tensor | None:
        """The live weight behind a placeholder."""
        if not isinstance(node, fx.Node) or node.name not in self.traced.lifted:
            return None
        return live_tensor(self.model, self.traced.lifted[node.name])

    def matrix(self, node: Any) -> tuple[fx.Node, bool, frozenset[fx.Node]] | None:
        """The placeholder of a weight matrix, whether it was transposed on the way, and the steps passed."""
        flipped, passed = False, set()
        while isinstance(node, fx.Node) and node.op == "call_function" and node.all_input_nodes:
            source = node.all_input_nodes[0]
            if op_name(node) in _FLIPS and len(shape(source)) == 2 and shape(node) == shape(source)[::-1]:
                flipped = not flipped
            elif not (is_layout(node) or op_name(node) in ("expand", "unsqueeze")) or shape(node)[-2:] != shape(source)[-2:]:
                return None
            passed.add(node)
            node = source
        value = self.tensor(node)
        return None if value is None or value.ndim != 2 else (node, flipped, frozenset(passed))

    def vector(self, node: Any, size: int) -> str | None:
        """The path of a weight vector of that size."""
        value = self.tensor(node)
        return self.traced.lifted[node.name] if value is not None and tuple(value.shape) == (size,) else None
