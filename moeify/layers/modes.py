"""What a layer does with its experts besides routing (docs/moe-layer.md, 'Stochastic choice')."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from moeify.ir.moe_config import MoEConfig
from moeify.layers.experts import LayerWeights
from moeify.layers.routing import ChoiceRule
from moeify.layers.stochastic_router import StochasticRouter


@dataclass(frozen=True)
class Mode:
    """every: all experts are on, and the router is not asked. merges: one expert with the mean rows stands for all."""

    every: bool = False
    merges: bool = False

    def weights(self, weights: LayerWeights) -> LayerWeights:
        """What runs."""
        return weights.merged() if self.merges else weights

    def offsets(self, own: Tensor, weights: LayerWeights) -> Tensor:
        """Those of what runs, int64; own: the layer's."""
        return torch.tensor(weights.offsets) if self.merges else own

    def rule(self, config: MoEConfig) -> ChoiceRule:
        if self.every:
            return ChoiceRule(None, None, config.gate_rule, config.normalize)
        return ChoiceRule(config.top_k, config.threshold, config.gate_rule, config.normalize, config.detach_sum)

    def no_scores(self, x: Tensor, config: MoEConfig) -> Tensor:
        """Scores [..., experts that run] of x [..., hidden] where no router is asked."""
        return x.new_zeros(*x.shape[:-1], 1 if self.merges else config.experts)


ROUTED = Mode()
_MODES: Mapping[str, Mode] = MappingProxyType({"merged": Mode(every=True, merges=True), "ensemble": Mode(every=True)})


def mode_of(router: nn.Module | None) -> Mode:
    """What a stochastic router is set to in inference; others route."""
    return _MODES.get(router.mode, ROUTED) if isinstance(router, StochasticRouter) else ROUTED
