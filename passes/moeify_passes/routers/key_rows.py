"""The keys of a spec's experts: the rows that decide whether a neuron fires."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_spec import MoESpec
from moeify_passes.expert_rows import expert_rows


def spec_rows(site: FeedForward, spec: MoESpec, name: str) -> Tensor:
    """The rows [rows, ...] that the layer will hold under that name, shared expert first."""
    if name in spec.weights:
        return spec.weights[name]
    if spec.composed is not None:
        return expert_rows(site, spec).all_rows()[name]
    found: Tensor = getattr(site, name).read()[spec.order]
    return found


def expert_means(rows: Tensor, spec: MoESpec) -> Tensor:
    """The mean row of each routed expert, float32 [experts, ...]."""
    offsets = spec.offsets
    return torch.stack([rows[a:b].double().mean(0) for a, b in zip(offsets, offsets[1:])]).float()


def key_centres(site: FeedForward, spec: MoESpec) -> Tensor:
    """The mean over each expert's keys (gate rows if gated, else up rows) after scaling each to norm 1, [experts, hidden]."""
    return expert_means(F.normalize(spec_rows(site, spec, "gate" if site.gated else "up").float(), dim=1), spec)
