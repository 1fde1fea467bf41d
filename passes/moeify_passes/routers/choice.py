"""What a spec's router does with tokens, outside any host."""

from __future__ import annotations

import torch
from torch import Tensor

from moeify.errors import ConversionError
from moeify.ir.draws import hashed, ring_scores
from moeify.ir.moe_spec import MoESpec, Router
from moeify.layers.routing import ChoiceRule, Routing, route


def route_tokens(spec: MoESpec, x: Tensor) -> Routing:
    """The routing of x [tokens, hidden]. Raises ConversionError where the spec has no router."""
    if spec.router is None:
        raise ConversionError("a layer without a router chooses no experts: insert a router first")
    rule = ChoiceRule(spec.top_k, spec.threshold, spec.gate_rule, spec.normalize, spec.detach_sum)
    return route(_scores(spec.router, x, len(spec.experts)), rule, spec.selection_bias)


def _scores(router: Router, x: Tensor, experts: int) -> Tensor:
    """[tokens, experts]; a stochastic router draws by the place of the token."""
    if router.config.kind != "stochastic":
        return router.scores(x)
    place = torch.arange(len(x))
    return ring_scores(hashed(place, torch.zeros_like(place), router.config.seed) % experts, experts).to(x.dtype)
