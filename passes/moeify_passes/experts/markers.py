"""Which neurons are among the strongest on which tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from moeify.ir.feed_forward import FeedForward
from moeify_passes.held_site import held_site, token_chunks


def markers(site: FeedForward, inputs: Tensor, top: int | float, weighted: bool) -> Iterator[Tensor]:
    """Chunks of tokens, bool [chunk, neurons]: True for the `top` strongest neurons of each token (count or fraction).

    weighted: strength is |h| times the L2 norm of the output row, else |h|.
    """
    held = held_site(site)
    count = top if isinstance(top, int) else round(top * site.neurons)
    count = min(max(count, 1), site.neurons)
    norms = held.down.read().norm(dim=1) if weighted else torch.ones(site.neurons)
    for chunk in token_chunks(inputs, site.neurons):
        strength = held.neuron_outputs(chunk).abs() * norms
        marked = torch.zeros(strength.shape, dtype=torch.bool)
        yield marked.scatter_(1, strength.topk(count, dim=1, sorted=False).indices, True)


def marker_rates(site: FeedForward, inputs: Tensor, top: int | float, weighted: bool) -> Tensor:
    """The share of tokens that mark each neuron, float64 [neurons]."""
    total = torch.zeros(site.neurons, dtype=torch.float64)
    for chunk in markers(site, inputs, top, weighted):
        total += chunk.sum(0)
    return total / len(inputs)
