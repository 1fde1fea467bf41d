"""The weights of a dense FFN by name, as an upcycling strategy takes and gives them."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from moeify.ir.feed_forward import FeedForward, ReadTensor

#: up, gate [neurons, hidden]; down [neurons, output]; up_bias, gate_bias [neurons]: what the FFN has of them. The output bias
#: is not one of them: it belongs to no expert.
NeuronWeights = dict[str, Tensor]


def dense_weights(site: FeedForward, read: ReadTensor | None = None) -> NeuronWeights:
    """The FFN's own weights, or those that stand under the same names where `read` looks them up. Never write to them."""
    return {name: (h if read is None else replace(h, load=read)).read() for name, h in site.rowwise().items()}
