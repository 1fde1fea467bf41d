"""What a layer computes, outside any host."""

from __future__ import annotations

import torch
from torch import Tensor

from moeify.ir.moe_spec import MoESpec
from moeify.layers.routing import Routing
from moeify_passes.expert_rows import ExpertRows
from moeify_passes.routers.choice import route_tokens

#: Experts of fewer rows than this are computed all together, and masked: to gather their tokens would cost more.
_FINE = 64


def routed_output(spec: MoESpec, rows: ExpertRows, x: Tensor) -> Tensor:
    """The layer's output without its output bias, [tokens, output] (docs/moe-layer.md); without a router all experts are on."""
    routing = routing_of(spec, x)
    if rows.composed is None and rows.offsets[-1] - rows.offsets[0] < _FINE * rows.experts:
        y = rows.gated_outputs(x, routing.gates) @ rows.tensors["down"]
    else:
        y = rows.shared_output(x)
        for expert in range(rows.experts):
            on = routing.chosen[:, expert]
            y[on] += routing.gates[on, expert, None] * rows.output(x[on], expert)
    return y + compensation(spec, routing, x)


def routing_of(spec: MoESpec, x: Tensor) -> Routing:
    """The routing of x [tokens, hidden]; without a router every expert is on, with gate 1."""
    if spec.router is not None:
        return route_tokens(spec, x)
    ones = torch.ones(len(x), len(spec.experts))
    return Routing(torch.zeros_like(ones), ones.bool(), ones)


def compensation(spec: MoESpec, routing: Routing, x: Tensor) -> Tensor:
    """What idle vectors and the low-rank term add, [tokens, output]; 0 where there are none."""
    found, y = spec.compensation, torch.zeros(())
    if found.idle is not None:
        y = y + (~routing.chosen).float() @ found.idle.float()
    if found.low_rank_in is not None and found.low_rank_out is not None:
        y = y + (x @ found.low_rank_in.float().T) @ found.low_rank_out.float()
    return y
