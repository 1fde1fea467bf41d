"""Finds which neurons fire together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.facts import ActivationSample, CoActivation, Fact, FeedForwards
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.pipeline.context import PassContext
from moeify_passes.held_site import CHUNK_BYTES, held_site, token_chunks


@dataclass(frozen=True)
class MeasureCoActivation:
    """Makes the graph of neurons that fire together (MoEfication, section 3.2), with the strongest neighbours of each alone.

    The weight between two neurons is the sum of |h_i| |h_j| over tokens. neighbours: how many of the strongest each neuron
    keeps; both ends of an edge have it. tokens: of the calibration sample, at most. batch, cap: the sum over so many
    neighbouring tokens counts as `cap` at most, as in the authors' code; cap "none" is the plain sum of the paper.
    """

    neighbours: int = 64
    tokens: int = 2048
    batch: int = 8
    cap: float | None = 1.0

    name: ClassVar[str] = "measure-co-activation"
    needs: ClassVar[tuple[type[Fact], ...]] = (FeedForwards, ActivationSample)
    uses: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (CoActivation,)
    keeps: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("neighbours", "tokens", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"measure-co-activation.{name} is {getattr(self, name)}: choose 1 or more")
        if self.cap is not None and not self.cap > 0:
            raise UsageError(f"measure-co-activation.cap is {self.cap}: choose a number above 0, or none")

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        """Gives CoActivation."""
        for site in graph.sites:
            strength = self._strength(site, context.get(site, ActivationSample).inputs)
            blocks = torch.split(torch.arange(site.neurons), 64)
            found = []
            for done, block in enumerate(blocks):
                context.progress(f"co-activation {site.path}", done, len(blocks))
                found.append(self._strongest(strength, block))
            result = _symmetric(torch.cat([edges for edges, _ in found], dim=1), torch.cat([w for _, w in found]), site.neurons)
            context.put(site, result)
            context.measure(site, co_activation_edges=len(result.weights) // 2)
        return False

    def _strength(self, site: FeedForward, inputs: Tensor) -> Tensor:
        """|h|, [groups, batch, neurons], of groups of neighbouring tokens taken evenly over the sample; zeros fill the last."""
        batches = torch.split(inputs, self.batch)
        most = max(1, self.tokens // self.batch)
        taken = range(len(batches)) if len(batches) <= most else torch.linspace(0, len(batches) - 1, most).long().tolist()
        chosen = torch.cat([batches[i] for i in taken])
        held = held_site(site)
        h = torch.cat([held.neuron_outputs(chunk).abs() for chunk in token_chunks(chosen, site.neurons)])
        padded = torch.cat((h, h.new_zeros(-len(h) % self.batch, site.neurons)))
        return padded.view(-1, self.batch, site.neurons)

    def _strongest(self, strength: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
        """Edges [2, found] from the block's neurons to their strongest neighbours, and weights [found] above 0."""
        neurons = strength.shape[2]
        weight = torch.zeros(len(block), neurons)
        for part in torch.split(strength, max(1, CHUNK_BYTES // (4 * len(block) * neurons))):
            if self.cap is None:
                flat = part.flatten(0, 1)
                weight += flat[:, block].T @ flat
            else:
                weight += (part[:, :, block].transpose(1, 2) @ part).clamp_(max=self.cap).sum(0)
        weight[torch.arange(len(block)), block] = 0.0
        best = weight.topk(min(self.neighbours, neurons - 1), dim=1)
        edges = torch.stack((block[:, None].expand_as(best.indices).flatten(), best.indices.flatten()))
        real = best.values.flatten() > 0
        return edges[:, real], best.values.flatten()[real]


def _symmetric(edges: Tensor, weights: Tensor, neurons: int) -> CoActivation:
    """Every edge in both directions once, sorted."""
    there, back = edges[0] * neurons + edges[1], edges[1] * neurons + edges[0]
    keys, place = torch.unique(torch.cat((there, back)), return_inverse=True)
    merged = torch.zeros(len(keys)).scatter_reduce(0, place, torch.cat((weights, weights)), "amax")
    counts = torch.bincount(keys // neurons, minlength=neurons)
    return CoActivation(torch.cat((counts.new_zeros(1), counts.cumsum(0))), keys % neurons, merged)
