"""How one ONNX node is written into the view of a graph, and what is written for operators that nobody looks into."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

if TYPE_CHECKING:
    import onnx_ir as ir

#: The nodes of an operator's inputs, None where one is left out.
Inputs = list[fx.Node | None]


@dataclass(frozen=True, eq=False)
class Writer:
    """Writes what one ONNX node computes; every step has the shape of the node's own output unless it says otherwise.

    values: shapes of the ONNX node's outputs, on the meta device. constants: of its inputs, as Python values, None where they
    are computed.
    """

    graph: fx.Graph
    node: ir.Node
    values: tuple[torch.Tensor, ...]
    constants: tuple[Any, ...]
    scopes: Mapping[str, Any]

    def __call__(self, target: Callable[..., Any], *args: Any, value: Any = None, **kwargs: Any) -> fx.Node:
        made = self.graph.call_function(target, args, kwargs)
        made.meta["val"] = self.values[0] if value is None else value
        made.meta["nn_module_stack"] = self.scopes
        return made

    def number(self, name: str, default: float) -> float:
        return self.node.attributes.get_float(name, default)

    def integers(self, name: str) -> list[int] | None:
        found = self.node.attributes.get_ints(name, None)
        return None if found is None else list(found)


def opaque(write: Writer, inputs: Inputs) -> list[fx.Node]:
    """A node that only takes and gives: its name is that of a torch operator where the matcher has words for one."""
    target = _OPAQUE.get(write.node.op_type, _unknown)
    whole = write(target, *(node for node in inputs if node is not None), value=write.values[0] if write.values else ())
    if len(write.values) < 2:
        return [whole]
    whole.meta["val"] = write.values
    return [write(operator.getitem, whole, i, value=value) for i, value in enumerate(write.values)]


def _unknown(*args: Any) -> Any:
    raise NotImplementedError  # a view of the graph is looked at, never run


def _named(name: str) -> Callable[..., Any]:
    def stand_in(*args: Any) -> Any:
        raise NotImplementedError

    stand_in.__name__ = name
    return stand_in


_OPAQUE: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(
        ("LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
         "RMSNormalization", "GroupNormalization", "InstanceNormalization", "LpNormalization"), _named("layer_norm")),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "ReduceSumSquare"), _named("mean")),
    **dict.fromkeys(("Conv", "ConvTranspose"), _named("convolution")),
}  # fmt: skip
