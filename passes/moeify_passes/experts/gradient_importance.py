"""Experts by what matters to the loss on each group of text (LLaMA-MoE, section 3.1, "gradient", and LLaMA-MoE v2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.facts import Fact, NeuronImportance
from moeify.ir.feed_forward import FeedForward
from moeify.pipeline.context import PassContext


@dataclass(frozen=True)
class GradientImportance:
    """Expert e takes the neurons that matter most to the loss on text group e.

    Neurons are dealt out in the order of their importance, to the expert where it is largest among those with room. A shared
    expert (cluster-neurons.shared_experts, "sharing-inter") takes first what most experts would take.

    overlap: every expert takes its best on its own ("sharing-inner"): some neurons stand in several experts, some in none.
    """

    overlap: bool = False

    kind: ClassVar[str] = "gradient-importance"
    needs: ClassVar[tuple[type[Fact], ...]] = (NeuronImportance,)
    uses: ClassVar[tuple[type[Fact], ...]] = ()

    def group(self, site: FeedForward, neurons: Tensor, sizes: tuple[int, ...], context: PassContext) -> tuple[Tensor, ...]:
        """Groups of `neurons` (int64 indices) of those sizes. Raises UsageError for another number of text groups."""
        values = context.get(site, NeuronImportance).values[:, neurons]
        if len(values) != len(sizes):
            raise UsageError(
                f"gradient-importance makes an expert of each text group: cluster-neurons.experts is {len(sizes)} but "
                f"measure-importance.groups is {len(values)}: set both to the same number"
            )
        if self.overlap:
            return tuple(neurons[_best(row, size)] for row, size in zip(values, sizes))
        return tuple(neurons[group] for group in _dealt(values, sizes))

    def share(self, site: FeedForward, size: int, context: PassContext) -> Tensor:
        """The `size` neurons that stand in most experts' best, ascending; of equally many the more important ones.

        Each expert's best are as many as an equal part of the other neurons. If there are too few, what is left is asked again.
        """
        values = context.get(site, NeuronImportance).values
        part = max(1, (site.neurons - size) // len(values))
        left = torch.arange(site.neurons)
        taken = left[:0]
        while len(taken) < size:
            of_left = values[:, left]
            counts = torch.zeros(len(left), dtype=torch.int64)
            for row in of_left:
                counts[_best(row, min(part, len(left)))] += 1
            by_importance = of_left.sum(0).argsort(descending=True, stable=True)
            order = by_importance[counts[by_importance].argsort(descending=True, stable=True)]
            chosen = order[: min(size - len(taken), int((counts > 0).sum()))]
            taken = torch.cat((taken, left[chosen]))
            left = left[torch.ones(len(left), dtype=torch.bool).index_fill_(0, chosen, False)]
        return taken.sort().values


def _best(row: Tensor, size: int) -> Tensor:
    """Indices of the largest, ascending; of equal ones the first."""
    return row.argsort(descending=True, stable=True)[:size].sort().values


def _dealt(values: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """values [experts, neurons]: always the largest value of an expert with room and a neuron that is left."""
    neurons = values.shape[1]
    labels, room, left = [-1] * neurons, list(sizes), neurons
    for place in values.flatten().argsort(descending=True, stable=True).tolist():
        expert, neuron = divmod(place, neurons)
        if labels[neuron] < 0 and room[expert]:
            labels[neuron] = expert
            room[expert] -= 1
            left -= 1
            if not left:
                break
    found = torch.tensor(labels)
    return tuple(torch.nonzero(found == expert).flatten() for expert in range(len(sizes)))
