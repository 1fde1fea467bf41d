"""What a spec's router does with tokens, outside any host."""

from __future__ import annotations

from torch import Tensor

from moeify.errors import ConversionError
from moeify.ir.moe_spec import MoESpec
from moeify.layers.routing import ChoiceRule, Routing, route


def route_tokens(spec: MoESpec, x: Tensor) -> Routing:
    """The routing of x [tokens, hidden]. Raises ConversionError where the spec has no router."""
    if spec.router is None:
        raise ConversionError("a layer without a router chooses no experts: insert a router first")
    rule = ChoiceRule(spec.top_k, spec.threshold, spec.gate_rule, spec.normalize, spec.detach_sum)
    return route(spec.router.scores(x), rule, spec.selection_bias)
