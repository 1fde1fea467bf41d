"""Finds how much each neuron matters to the model's loss, on each kind of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moeify.errors import ConversionError, UsageError
from moeify.ir.facts import CalibrationData, Fact, FeedForwards, NeuronImportance
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import Batch, Loss, ModelGraph, OutputGradient
from moeify.pipeline.context import PassContext
from moeify_passes.analyse.reservoir import Reservoir
from moeify_passes.experts.k_means import balanced_k_means
from moeify_passes.held_site import held_site, token_chunks


@dataclass(frozen=True)
class MeasureImportance:
    """Sums |h_i dL/dh_i|, what the loss L would change without neuron i, over the tokens of each group of text (LLaMA-MoE).

    Runs before each-layer: a forward pass groups the text, then rows of text go back through the whole dense model one by one.

    groups: of similar text, found in each layer by k-means on the FFN's inputs; as many as there will be experts. span: so many
    neighbouring tokens are grouped together, by their mean input: 1 as LLaMA-MoE v2 does, 64 for about a sentence, as v1 does
    by embeddings of another model. tokens: how many to look at. sample: how many inputs decide the groups. loss: "next-token"
    for causal language models, "energy" for others (how far each output vector is from its own mean), "auto": what fits.
    """

    groups: int = 8
    span: int = 1
    tokens: int = 8192
    sample: int = 2048
    loss: Loss = "auto"

    name: ClassVar[str] = "measure-importance"
    needs: ClassVar[tuple[type[Fact], ...]] = (FeedForwards, CalibrationData)
    uses: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (NeuronImportance,)
    keeps: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("groups", "span", "tokens", "sample"):
            if getattr(self, name) < 1:
                raise UsageError(f"measure-importance.{name} is {getattr(self, name)}: choose 1 or more")
        if self.loss not in ("auto", "next-token", "energy"):
            raise UsageError(f"measure-importance.loss is {self.loss!r}: choose auto, next-token or energy")

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        """Gives NeuronImportance. Raises ConversionError where it does not run before each-layer, or on too little text."""
        if not graph.sites:
            return False
        if context.inputs is not None:
            raise ConversionError("measure-importance runs before each-layer: gradients go through the whole dense model")
        batches = context.batches or ()
        centres = {site.path: self._centres(site, inputs, context) for site, inputs in _walked(graph, batches)}
        sums = {site.path: torch.zeros(self.groups, site.neurons, dtype=torch.float64) for site in graph.sites}
        counts = {site.path: torch.zeros(self.groups, dtype=torch.int64) for site in graph.sites}
        seen = 0
        for found in graph.host.gradients(batches, self.loss):
            for site in graph.sites:
                path = site.path
                groups = self._groups(found[path].inputs, centres[path])
                counts[path] += torch.bincount(groups, minlength=self.groups)
                _add(sums[path], held_site(site), found[path], groups)  # held for this batch: all layers at once may not fit
            seen += len(found[graph.sites[0].path].inputs)
            context.progress("measuring importance", seen, self.tokens)
            if seen >= self.tokens:
                break
        for site in graph.sites:
            fact = NeuronImportance(sums[site.path].float(), centres[site.path], counts[site.path])
            context.put(site, fact)
            context.measure(site, importance_tokens=int(fact.tokens.sum()))
        return False

    def _centres(self, site: FeedForward, inputs: Iterator[Tensor], context: PassContext) -> Tensor:
        """The mean input of each group, [groups, hidden]."""
        sample = Reservoir(self.sample, context.generator("measure-importance", site))
        seen = 0
        for batch in inputs:
            sample.add(self._spans(batch))
            if (seen := seen + len(batch)) >= self.tokens:
                break
        rows = sample.rows()
        if len(rows) < self.groups:
            raise ConversionError(
                f"{site.path}: {len(rows)} spans of calibration text cannot make {self.groups} groups; give more text, or "
                "choose a smaller measure-importance.span"
            )
        size, more = divmod(len(rows), self.groups)
        sizes = torch.tensor([size + (group < more) for group in range(self.groups)])
        found = balanced_k_means(rows, sizes, 20, context.generator("measure-importance/groups", site))
        return torch.stack([rows[group].mean(0) for group in found.groups()])

    def _spans(self, inputs: Tensor) -> Tensor:
        """The mean input of each run of `span` tokens of one batch, the last one perhaps shorter."""
        return torch.stack([run.float().mean(0) for run in torch.split(inputs, self.span)]) if self.span > 1 else inputs.float()

    def _groups(self, inputs: Tensor, centres: Tensor) -> Tensor:
        """The group of each token, by the nearest centre of its span; int64 [tokens]."""
        nearest = torch.cdist(self._spans(inputs), centres).argmin(1)
        return nearest.repeat_interleave(self.span)[: len(inputs)]


def _walked(graph: ModelGraph, batches: Iterable[Batch]) -> Iterator[tuple[FeedForward, Iterator[Tensor]]]:
    with graph.host.walk(batches, "dense", 1 << 30) as walk:
        for site in graph.sites:
            yield site, walk.inputs(site)


def _add(sums: Tensor, site: FeedForward, found: OutputGradient, groups: Tensor) -> None:
    """Adds |h dL/dh|; h reaches the output through its down row alone, so dL/dh is dL/dy . down."""
    down = site.down.read()
    parts = zip(token_chunks(found.inputs, site.neurons), token_chunks(found.gradient, site.neurons))
    start = 0
    for x, gradient in parts:
        effect = (site.neuron_outputs(x) * (gradient @ down.T)).abs().double()
        sums.index_add_(0, groups[start : start + len(x)], effect)
        start += len(x)
