"""Which neurons are among the strongest on which tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moeify.ir.feed_forward import FeedForward
from moeify_passes.held_site import given, held_site, token_chunks


def markers(site: FeedForward, inputs: Tensor, top: int | float, weighted: bool, normalized: bool = False) -> Iterator[Tensor]:
    """Chunks of tokens, bool [chunk, neurons]: True for the `top` strongest neurons of each token (count or fraction).

    weighted: strength is |h| times the L2 norm of the output row, else |h|. normalized: h is that of inputs and of key and up
    rows scaled to norm 1.
    """
    held = _unit_rows(held_site(site)) if normalized else held_site(site)
    count = top if isinstance(top, int) else round(top * site.neurons)
    count = min(max(count, 1), site.neurons)
    norms = held.down.read().norm(dim=1) if weighted else torch.ones(site.neurons)
    for chunk in token_chunks(inputs, site.neurons):
        x = F.normalize(chunk, dim=1) if normalized else chunk
        strength = held.neuron_outputs(x).abs() * norms
        marked = torch.zeros(strength.shape, dtype=torch.bool)
        yield marked.scatter_(1, strength.topk(count, dim=1, sorted=False).indices, True)


def marker_rates(site: FeedForward, inputs: Tensor, top: int | float, weighted: bool, normalized: bool = False) -> Tensor:
    """The share of tokens that mark each neuron, float64 [neurons]."""
    total = torch.zeros(site.neurons, dtype=torch.float64)
    for chunk in markers(site, inputs, top, weighted, normalized):
        total += chunk.sum(0)
    return total / len(inputs)


def _unit_rows(site: FeedForward) -> FeedForward:
    """The site with each key and up row scaled to norm 1, its bias by as much."""
    changed: dict[str, Any] = {}
    for name in ("up", "gate"):
        if (weight := getattr(site, name)) is None:
            continue
        rows = weight.read()
        norm = rows.norm(dim=1).clamp(min=1e-12)
        changed[name] = given(weight, rows / norm[:, None])
        if (bias := getattr(site, f"{name}_bias")) is not None:
            changed[f"{name}_bias"] = given(bias, bias.read() / norm)
    return replace(site, **changed)
