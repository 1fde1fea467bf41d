"""Scales what the routed experts say.

    y = S(x) + sum over chosen e of g_e E_e(x)
        =>
    y = S(x) + sum over chosen e of g_e s E_e(x)        one s a layer, in the down rows

Preserved: the shared expert, the router and its choice. With s = 1 everything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from moeify.errors import ConversionError, UsageError
from moeify.ir.facts import ActivationSample, Experts, Fact, NeuronGroups, NeuronImportance, NeuronStatistics, Routing
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_spec import Compensation, MoESpec
from moeify.pipeline.context import PassContext
from moeify_passes.expert_rows import expert_rows
from moeify_passes.held_site import held_site, token_chunks
from moeify_passes.rewrite.same_spec import same_spec
from moeify_passes.routed_output import routed_output


@dataclass(frozen=True)
class ScaleExperts:
    """Makes up for gates that leave the routed experts too small (LLaMA-MoE's scale factor).

    factor: of every routed expert's output. None: the one that brings the layer nearest to the dense FFN on the calibration
    sample, by least squares. LLaMA-MoE takes experts / top_k behind a softmax over the chosen ones (4 for 2 of 8); top_k gives
    back gates of about 1.
    """

    factor: float | None = None

    name: ClassVar[str] = "scale-experts"
    uses: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    keeps: ClassVar[tuple[type[Fact], ...]] = (
        ActivationSample, NeuronStatistics, NeuronGroups, NeuronImportance, Experts, Routing,
    )  # fmt: skip
    rewrites: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.factor is not None and not 0 < self.factor < float("inf"):
            raise UsageError(f"scale-experts.factor is {self.factor}: choose a number above 0, or none")

    @property
    def needs(self) -> tuple[type[Fact], ...]:
        return (Routing, ActivationSample) if self.factor is None else (Routing,)

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        """Writes the down rows, always from those of the dense FFN. Raises ConversionError where a pass made down rows of its
        own."""
        changed = False
        for site in graph.sites:
            before = graph.specs[site.path]
            if before.shards is not None:
                raise ConversionError(
                    f"{site.path}: experts that are copies of the FFN have their own scale: leave scale-experts out"
                )
            others = {name: value for name, value in before.weights.items() if name != "down"}
            plain = replace(before, weights=others)
            factor = self._fitted(site, plain, context) if self.factor is None else self.factor
            down = site.down.read()[plain.order].clone()
            down[len(plain.shared) :] *= factor
            spec = replace(plain, weights=others | {"down": down})
            if not same_spec(before, spec):
                graph.specs[site.path] = spec
                changed = True
            context.measure(site, scale_factor=factor)
        return changed

    def _fitted(self, site: FeedForward, spec: MoESpec, context: PassContext) -> float:
        """s with the least ||dense - shared - s routed||^2; 1 where the routed experts say nothing."""
        routed_alone = replace(spec, compensation=Compensation())
        rows, dense = expert_rows(site, spec), held_site(site)
        product = square = torch.zeros((), dtype=torch.float64)
        for x in token_chunks(context.get(site, ActivationSample).inputs, max(site.neurons, site.output)):
            shared = rows.shared_output(x)
            bias = 0.0 if dense.output_bias is None else dense.output_bias.read()
            routed = (routed_output(routed_alone, rows, x) - shared).double()
            product = product + ((dense.forward(x) - bias - shared).double() * routed).sum()
            square = square + routed.square().sum()
        return float(product / square) if float(square) > 0 else 1.0
