"""What a way of gathering experts is, and what the ways have in common."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.feed_forward import ROWWISE
from moeify.ir.moe_config import MoEConfig
from moeify.layers.moe_layer import MoELayer

#: up, gate [neurons, hidden]; down [neurons, output]; up_bias, gate_bias [neurons]; output_bias [output].
DenseWeights = dict[str, Tensor]


class Gathering(Protocol):
    """A way to make one dense FFN of the experts of a layer."""

    name: ClassVar[str]

    def check(self, config: MoEConfig, neurons: int) -> None:
        """neurons: of the dense FFN. Raises UsageError, without the layer's name, where it cannot be made this way."""
        ...

    def equals(self, config: MoEConfig) -> str | None:
        """What the dense FFN is exactly, in words; None where it is an approximation."""
        ...

    def gather(self, layer: MoELayer) -> DenseWeights:
        """The weights, detached, in the dtype of the layer's; they may share memory with it."""
        ...


def check_low_rank(config: MoEConfig) -> None:
    """Raises UsageError for a layer with a term that no neuron computes."""
    if config.rank:
        raise UsageError("its low-rank term stands beside the neurons, where a dense network has none: convert without it")


def rows_of(layer: MoELayer) -> DenseWeights:
    """All rows, the shared expert first; those that are composed of a frozen core are formed."""
    rows = layer.rows
    return {name: value.detach() for name in ROWWISE if (value := getattr(rows, name)) is not None}


def output_bias_of(layer: MoELayer) -> DenseWeights:
    """The output bias, where there is one."""
    return {} if layer.output_bias is None else {"output_bias": layer.output_bias.detach()}


def dtype_of(layer: MoELayer) -> torch.dtype:
    """That of its rows."""
    return (layer.down if layer.config.composed is None else layer.get_parameter("core.down")).dtype
