"""A feed-forward network as it was before its conversion: what layers are measured against."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, Self

from torch import Tensor, nn

from moeify.ir.activations import activation
from moeify.ir.feed_forward import ROWWISE, FeedForward
from moeify.ir.moe_config import MoEConfig
from moeify.ir.weight_place import WeightPlace
from moeify.layers.moe_layer import MoELayer
from moeify.layers.rows import Rows, linear


class Placed(Protocol):
    """A converted layer: its shape, and where the weights of its dense FFN stand in the dense model, by role."""

    @property
    def config(self) -> MoEConfig: ...
    @property
    def places(self) -> Mapping[str, WeightPlace] | None: ...


@dataclass(frozen=True, eq=False)
class DenseFFN:
    """All neurons with their weights, in the order of the dense model or, where that is not known, of the layer."""

    activation: str
    rows: Rows
    output_bias: Tensor | None

    @classmethod
    def of_site(cls, site: FeedForward) -> Self:
        """The site's weights in float32, on the CPU."""
        found = {name: handle.copied(Tensor.float) for name, handle in site.rowwise().items()}
        bias = None if site.output_bias is None else site.output_bias.read().float()
        return cls(site.activation, Rows(**found), bias)

    @classmethod
    def of_places(cls, model: nn.Module, places: Mapping[str, WeightPlace], config: MoEConfig) -> Self:
        """The FFN in a dense model whose weights stand at those places, by role; memory is shared with the model."""
        found = {role: place.view(model.get_parameter(place.parameter).detach()) for role, place in places.items()}
        return cls(config.activation, Rows(**{n: v for n, v in found.items() if n in ROWWISE}), found.get("output_bias"))

    @classmethod
    def of_layer(cls, layer: MoELayer) -> Self:
        """All rows of a layer that is a partition of the FFN."""
        return cls(layer.config.activation, layer.rows, layer.output_bias)

    @property
    def neurons(self) -> int:
        return len(self.rows.up)

    @property
    def row(self) -> int:
        """The number of weights of one neuron."""
        return self.rows.up.shape[1] * (1 if self.rows.gate is None else 2) + self.rows.down.shape[1]

    def hidden(self, x: Tensor) -> Tensor:
        """h [tokens, neurons] of x [tokens, hidden], in x's dtype."""
        return hidden_of(self.rows, self.activation, x)

    def output(self, h: Tensor, neurons: Tensor | None = None) -> Tensor:
        """y [tokens, output] of h [tokens, neurons] as it leaves the activation, masked or scaled or not.

        neurons: int64 indices of those that h is about; None: all.
        """
        down = self.rows.down if neurons is None else self.rows.down[neurons]
        return linear(h, down.T, self.output_bias)


def dense_ffns(model: nn.Module, layers: Mapping[str, Placed]) -> dict[str, DenseFFN]:
    """By path, the FFNs of the dense model that converted layers were made of; those are left out of which it is not known
    where they stand, or that this model does not have."""
    found = {}
    for path, layer in layers.items():
        with suppress(AttributeError):
            if layer.places is not None:
                found[path] = DenseFFN.of_places(model, layer.places, layer.config)
    return found


def hidden_of(rows: Rows, name: str, x: Tensor) -> Tensor:
    """h [tokens, rows] of x [tokens, hidden]; name: of the activation."""
    act = activation(name)
    up = linear(x, rows.up, rows.up_bias)
    return act(up) if rows.gate is None else act(linear(x, rows.gate, rows.gate_bias)) * up
