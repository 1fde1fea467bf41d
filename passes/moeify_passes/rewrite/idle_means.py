"""What is missing from a layer's output on average, and how far the layer is from the dense FFN."""

from __future__ import annotations

import torch
from torch import Tensor

from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_spec import MoESpec
from moeify_passes.expert_rows import ExpertRows
from moeify_passes.held_site import held_site, token_chunks
from moeify_passes.routed_output import routed_output
from moeify_passes.routers.choice import route_tokens


def idle_means(spec: MoESpec, rows: ExpertRows, inputs: Tensor) -> Tensor:
    """The mean of E_e(x) over the inputs [tokens, hidden] on which e is not chosen, float32 [experts, output]."""
    output = rows.tensors["down"].shape[1]
    sums = torch.zeros(rows.experts, output, dtype=torch.float64)
    counts = torch.zeros(rows.experts, dtype=torch.float64)
    for x in token_chunks(inputs, max(rows.offsets[-1], output)):
        chosen = route_tokens(spec, x).chosen
        for expert in range(rows.experts):
            idle = ~chosen[:, expert]
            sums[expert] += rows.output(x[idle], expert).sum(0, dtype=torch.float64)
            counts[expert] += idle.sum()
    return (sums / counts.clamp(min=1)[:, None]).float()


def mean_bias(site: FeedForward, spec: MoESpec, rows: ExpertRows, inputs: Tensor) -> Tensor:
    """The output bias at which the layer's mean output over inputs [tokens, hidden] is the dense FFN's, float32 [output]."""
    dense, total = held_site(site), torch.zeros(site.output, dtype=torch.float64)
    for x in token_chunks(inputs, max(site.neurons, rows.offsets[-1], site.output)):
        total += (dense.forward(x) - routed_output(spec, rows, x)).sum(0, dtype=torch.float64)
    return (total / len(inputs)).float()


def relative_squared_error(site: FeedForward, spec: MoESpec, rows: ExpertRows, inputs: Tensor) -> float:
    """sum |y_dense - y|^2 / sum |y_dense - the FFN's output bias|^2 over inputs [tokens, hidden]; 0 where both are 0."""
    dense = held_site(site)
    own = 0.0 if dense.output_bias is None else dense.output_bias.read()
    error = size = torch.zeros((), dtype=torch.float64)
    for x in token_chunks(inputs, max(site.neurons, site.output)):
        expected = dense.forward(x)
        bias = rows.tensors.get("output_bias", torch.zeros(site.output))
        error = error + (expected - bias - routed_output(spec, rows, x)).double().square().sum()
        size = size + (expected - own).double().square().sum()
    return float(error / size.clamp(min=1e-300))
