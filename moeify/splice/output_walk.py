"""A walk that goes on to the model's outputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from moeify.measure.outputs import main_output
from moeify.splice.spill import Values
from moeify.splice.walk import GraphWalk


class OutputWalk(GraphWalk):
    """A walk on the dense model, whose outputs it knows as well as those of branches from it."""

    @property
    def _end(self) -> int:
        """The place of the node that gives the outputs."""
        return len(self._nodes) - 1

    def _main(self, number: int, values: Values) -> tuple[str, Tensor]:
        """The main output and its name, where values of batch `number` have come to the end: its vectors [vectors, width] (an
        output without a last dim of its own: of width 1), without those of padding tokens."""
        output = self._nodes[-1]
        leaves = [self._value(leaf, values) if isinstance(leaf, fx.Node) else leaf for leaf in output.args[0]]
        name, found = main_output(pytree.tree_unflatten(leaves, self._traced.output_spec))
        vectors = found.reshape(-1, found.shape[-1] if found.ndim else 1)
        return name, self._masks[number].real(vectors, output in self._decoding)

    def _expected(self, number: int, values: Values) -> tuple[Tensor, bool]:
        """What the dense model makes of values at the start of the batch, as `moved` takes it, and whether that is logits."""
        whole: dict[str, Any] = dict(values)
        self._run(whole, 0, self._end)
        name, output = self._main(number, whole)
        logits = name == "logits"
        return output.float().log_softmax(-1) if logits else output, logits  # once: a vocabulary is wide


def moved(expected: Tensor, other: Tensor, logits: bool) -> float:
    """How far an output has moved, [vectors, width], summed over vectors: KL(expected || other) in nats for logits, else the
    squared relative error.

    expected: for logits the logarithms of their probabilities. other: as the model gives it.
    """
    total = 0.0
    for d, m in _pairs(expected, other):
        if logits:
            total += float((d.exp() * (d - m.log_softmax(-1))).sum(dtype=torch.float64))
        else:
            total += float(((d - m).square().sum(-1) / d.square().sum(-1).clamp(min=1e-30)).sum(dtype=torch.float64))
    return max(total, 0.0)


def _pairs(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for d, m in zip(torch.split(a, 256), torch.split(b, 256)):
        yield d.float(), m.float()
