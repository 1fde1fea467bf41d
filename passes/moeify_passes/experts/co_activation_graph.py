"""Experts by co-activation: the graph of neurons that fire together is cut where it is weak (MoEfication, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.facts import CoActivation, Fact
from moeify.ir.feed_forward import FeedForward
from moeify.pipeline.context import PassContext
from moeify_passes.experts.graph_partition import GraphPartition, induced
from moeify_passes.experts.graph_start import has_metis, metis_labels, spectral_labels


@dataclass(frozen=True)
class CoActivationGraph:
    """Parts of the co-activation graph that cut little of its weight.

    partitioner: "metis", the authors' choice (pymetis, of the extra `graph`); "spectral", our own; "auto" is METIS where it is
    installed. Parts that are too large then lose the neurons that cost least (the authors move random ones), and neurons are
    swapped while that cuts less, in at most `rounds` rounds.
    """

    partitioner: Literal["auto", "metis", "spectral"] = "auto"
    rounds: int = 5

    kind: ClassVar[str] = "co-activation-graph"
    needs: ClassVar[tuple[type[Fact], ...]] = (CoActivation,)
    uses: ClassVar[tuple[type[Fact], ...]] = ()

    def __post_init__(self) -> None:
        if self.partitioner not in ("auto", "metis", "spectral"):
            raise UsageError(f"co-activation-graph.partitioner is {self.partitioner!r}: choose auto, metis or spectral")
        if self.partitioner == "metis" and not has_metis():
            raise UsageError(
                'co-activation-graph.partitioner is metis but pymetis is missing: pip install "moeify[graph]", or '
                "choose spectral"
            )
        if self.rounds < 0:
            raise UsageError(f"co-activation-graph.rounds is {self.rounds}: choose 0 or more")

    def group(self, site: FeedForward, neurons: Tensor, sizes: tuple[int, ...], context: PassContext) -> tuple[Tensor, ...]:
        """Groups of `neurons` (int64 indices) of those sizes."""
        graph = induced(context.get(site, CoActivation), neurons)
        generator = context.generator("experts/co-activation", site)
        by_metis = self.partitioner == "metis" or (self.partitioner == "auto" and has_metis())
        if by_metis:
            labels = metis_labels(graph, sizes, int(torch.randint(2**31 - 1, (1,), generator=generator)))
        else:
            labels = spectral_labels(graph, sizes, generator)
        partition = GraphPartition(graph, labels, sizes)
        partition.balance()
        partition.refine(self.rounds)
        whole = float(graph.weights.sum()) / 2
        context.measure(site, partitioner="metis" if by_metis else "spectral", cut_share=partition.cut / max(whole, 1e-30))
        found = torch.from_numpy(partition.labels)
        return tuple(neurons[found == part] for part in range(len(sizes)))
