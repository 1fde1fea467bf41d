"""What a routed layer computes, outside any host."""

from __future__ import annotations

import torch
from torch import Tensor

from moeify.ir.moe_spec import MoESpec
from moeify_passes.expert_rows import ExpertRows
from moeify_passes.routers.choice import route_tokens


def routed_output(spec: MoESpec, rows: ExpertRows, x: Tensor) -> Tensor:
    """The layer's output without its output bias, [tokens, output] (docs/moe-layer.md); without a router all experts are on."""
    if spec.router is None:
        chosen, gates = torch.ones(len(x), rows.experts, dtype=torch.bool), torch.ones(len(x), rows.experts)
    else:
        routing = route_tokens(spec, x)
        chosen, gates = routing.chosen, routing.gates
    y = rows.shared_output(x)
    for expert in range(rows.experts):
        on = chosen[:, expert]
        y[on] += gates[on, expert, None] * rows.output(x[on], expert)
    found = spec.compensation
    if found.idle is not None:
        y += (~chosen).float() @ found.idle.float()
    if found.low_rank_in is not None and found.low_rank_out is not None:
        y += (x @ found.low_rank_in.float().T) @ found.low_rank_out.float()
    return y
