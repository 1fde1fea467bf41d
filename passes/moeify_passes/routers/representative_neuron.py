"""The router that asks one neuron of each expert (CMoE, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.facts import ActivationSample, Fact
from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.ir.moe_spec import MoESpec, Router
from moeify.pipeline.context import PassContext
from moeify_passes.experts.markers import markers


@dataclass(frozen=True)
class RepresentativeNeuron:
    """Scores an expert by what its most typical neuron says.

    The neuron is the one whose marker column (True on the tokens where it is among the strongest) is nearest, in L1, to the
    mean column of its expert; the score is its |h(x)|, with key and up row scaled to norm 1.

    top, weighted, normalized: which neurons a token marks, as in activation-markers; the defaults are CMoE's. absolute: |h|
    as in the authors' code, else the signed h of the paper's text. unit_rows: scales the rows, as in the code.
    """

    top: int | float = 10
    weighted: bool = False
    normalized: bool = True
    absolute: bool = True
    unit_rows: bool = True

    kind: ClassVar[str] = "representative-neuron"
    needs: ClassVar[tuple[type[Fact], ...]] = (ActivationSample,)
    uses: ClassVar[tuple[type[Fact], ...]] = ()

    def __post_init__(self) -> None:
        if self.top <= 0 or (isinstance(self.top, float) and self.top > 1):
            raise UsageError(f"representative-neuron.top is {self.top}: choose a count from 1 or a fraction of at most 1.0")

    def shape(self, config: MoEConfig) -> RouterConfig:
        """The router's shape in front of a layer of that shape."""
        return RouterConfig(
            "neuron",
            bias=config.up_bias or config.gate_bias,
            activation=config.activation,
            output="abs" if self.absolute else "identity",
            gated=config.gated,
        )

    def route(self, site: FeedForward, spec: MoESpec, context: PassContext) -> Router:
        """The router for the spec's experts: up, gate [experts, hidden], and biases [experts] where neurons have them."""
        chosen = representatives(self, site, spec, context.get(site, ActivationSample).inputs)
        config = self.shape(spec.config(site))
        tensors: dict[str, Tensor] = {}
        for name in ("up", "gate") if site.gated else ("up",):
            rows = getattr(site, name).read()[chosen].float()
            norm = rows.norm(dim=1).clamp(min=1e-12) if self.unit_rows else torch.ones(len(chosen))
            tensors[name] = rows / norm[:, None]
            if config.bias:
                handle = getattr(site, f"{name}_bias")
                bias = torch.zeros(len(chosen)) if handle is None else handle.read()[chosen].float()
                tensors[f"{name}_bias"] = bias / norm
        return Router(config, tensors)


def representatives(by: RepresentativeNeuron, site: FeedForward, spec: MoESpec, inputs: Tensor) -> Tensor:
    """The neuron that stands for each expert, int64 [experts]; of equally near ones the first.

    The L1 distance of a binary column a to a mean column m is sum(m) + sum over tokens of a (1 - 2 m).
    """
    distances = [torch.zeros(len(expert), dtype=torch.float64) for expert in spec.experts]
    for marked in markers(site, inputs, by.top, by.weighted, by.normalized):
        for distance, expert in zip(distances, spec.experts):
            columns = marked[:, expert].double()
            distance += (1 - 2 * columns.mean(1)) @ columns
    return torch.stack([expert[distance.argmin()] for distance, expert in zip(distances, spec.experts)])
