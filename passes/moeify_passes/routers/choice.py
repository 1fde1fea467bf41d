"""What a spec's router does with tokens, outside any host."""

from __future__ import annotations

import torch
from torch import Tensor

from moeify.errors import ConversionError
from moeify.ir.draws import hashed, ring_scores
from moeify.ir.moe_spec import MoESpec
from moeify.layers.routing import ChoiceRule, Routing, choice_values, route


def route_tokens(spec: MoESpec, x: Tensor) -> Routing:
    """The routing of x [tokens, hidden]. Raises ConversionError where the spec has no router."""
    rule = ChoiceRule(spec.top_k, spec.threshold, spec.gate_rule, spec.normalize, spec.detach_sum)
    return route(_scores(spec, x), rule, spec.selection_bias)


def values_of_choice(spec: MoESpec, x: Tensor) -> Tensor:
    """What top-k and threshold compare, [tokens, experts]. Raises ConversionError where the spec has no router."""
    return choice_values(_scores(spec, x), spec.gate_rule, spec.selection_bias)


def _scores(spec: MoESpec, x: Tensor) -> Tensor:
    """[tokens, experts]; a stochastic router draws by the place of the token."""
    router, experts = spec.router, len(spec.experts)
    if router is None:
        raise ConversionError("a layer without a router chooses no experts: insert a router first")
    if router.config.kind != "stochastic":
        return router.scores(x)
    place = torch.arange(len(x))
    return ring_scores(hashed(place, torch.zeros_like(place), router.config.seed) % experts, experts).to(x.dtype)
