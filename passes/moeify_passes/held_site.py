"""A site whose weights are read once, and the chunks in which tokens pass through it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from moeify.ir.feed_forward import FeedForward, Weight

#: Bytes that one [chunk, neurons] float32 matrix may take; an FFN holds about four of them at a time.
CHUNK_BYTES = 32 << 20


def held_site(site: FeedForward) -> FeedForward:
    """The same site with its weights in memory, in float32, so that many chunks of tokens read the host only once."""
    return replace(
        site,
        up=_held(site.up),
        gate=site.gate and _held(site.gate),
        down=_held(site.down),
        up_bias=site.up_bias and _held(site.up_bias),
        gate_bias=site.gate_bias and _held(site.gate_bias),
        output_bias=site.output_bias and _held(site.output_bias),
    )


def token_chunks(inputs: Tensor, width: int, limit: int = CHUNK_BYTES) -> Iterator[Tensor]:
    """Runs of tokens, float32 [chunk, hidden], such that a float32 matrix [chunk, width] takes at most `limit` bytes."""
    for chunk in torch.split(inputs, max(1, limit // (4 * width))):
        yield chunk.float()


def given(weight: Weight, value: Tensor) -> Weight:
    """The handle with that value in place of the host's; neuron-major."""
    return Weight(weight.parameter, tuple(value.shape), lambda _: value)


def _held(weight: Weight) -> Weight:
    return given(weight, weight.copied(Tensor.float))
