"""Objects that take the place of a feed-forward network's matrices, so that the user's own code runs the MoE layer.

The matrix going in stores its input and hands on zeros of the neurons' shape; whatever the user's code does to those
(activation, gate product, dropout) comes to nothing; the matrix going out takes the stored input and runs the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


class Stash:
    """Holds the input of one feed-forward network between its matrix going in and its matrix going out.

    axis: where the features stand: -1, or 1 for 1x1 convolutions.
    """

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis
        self.x: Tensor | None = None

    def put(self, x: Tensor, neurons: int) -> Tensor:
        """Keeps x [..., hidden]; returns zeros [..., neurons] that take no memory."""
        self.x = x
        sizes = list(x.shape)
        sizes[self.axis] = neurons
        return x.new_zeros(()).expand(sizes)

    def take(self) -> Tensor:
        if self.x is None:
            raise RuntimeError(
                "the matrix going out ran before the one going in: this model cannot hold the MoE layer this way"
            )
        x, self.x = self.x, None
        return x


class StashInput(nn.Module):
    """In place of a linear module going in: x [..., hidden] -> zeros [..., neurons]."""

    def __init__(self, stash: Stash, neurons: int) -> None:
        super().__init__()
        self.stash = stash
        self.neurons = neurons

    def forward(self, x: Tensor) -> Tensor:
        return self.stash.put(x, self.neurons)

    def extra_repr(self) -> str:
        return f"neurons={self.neurons}"


class StashedLayer(nn.Module):
    """In place of the linear module going out: zeros [..., neurons] -> layer(stored x) [..., output]."""

    def __init__(self, stash: Stash, layer: nn.Module) -> None:
        super().__init__()
        self.stash = stash
        self.layer = layer

    def forward(self, hidden: Tensor) -> Tensor:
        y: Tensor = self.layer(self.stash.take())
        return y


@dataclass(eq=False)
class StandIn:
    """In place of a bare parameter: torch calls that would read it are answered here (`__torch_function__`), those of torch.ops
    in an exported graph too.

    role "in": a product with x stores x and gives zeros of as many neurons as the parameter has; "out": a product runs the
    layer; "bias": adding it changes nothing, as the layer adds its own. Steps on the parameter alone (a transpose) give it
    back: which of its axes faces x is told by x, as there are more neurons than hidden values.
    """

    role: Literal["in", "out", "bias"]
    stash: Stash
    shape: torch.Size
    layer: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = pytree.tree_leaves((args, kwargs or {}))
        own = [a for a in found if isinstance(a, StandIn)]
        matrix = next((a for a in own if a.role != "bias"), None)
        x = next((a for a in found if isinstance(a, Tensor)), None)
        if x is None:
            return own[0]
        return x if matrix is None else matrix.apply(x)  # a bias on its own: hidden + bias

    def apply(self, x: Tensor) -> Tensor:
        """The product of x [..., n] with the parameter."""
        if self.role == "out":
            assert self.layer is not None
            return self.layer(self.stash.take())
        first, second = self.shape
        return self.stash.put(x, second if x.shape[-1] == first else first)

    def t(self) -> StandIn:
        return self

    T = mT = property(t)

    def transpose(self, first: int, second: int) -> StandIn:
        return self

    def __rmatmul__(self, x: Tensor) -> Tensor:
        return self.apply(x)

    def __radd__(self, x: Tensor) -> Tensor:
        return x
