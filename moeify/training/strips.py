"""Wide vectors a few at a time: logits of a large vocabulary, in float32, would go through memory once for every operation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

#: Values of a strip: what a core's second cache holds, and enough to keep a graphics processor busy.
_CORE, _DEVICE = 1 << 17, 1 << 26


def strips(vectors: Tensor) -> Iterator[slice]:
    """Where to cut [vectors, width]."""
    size = max(1, (_CORE if vectors.device.type == "cpu" else _DEVICE) // max(1, vectors.shape[-1]))
    return (slice(start, start + size) for start in range(0, len(vectors), size))


@torch.no_grad()
def log_totals(logits: Tensor) -> Tensor:
    """log sum exp of each vector: [vectors] float32 of [vectors, width] of any float dtype."""
    found = [logits[strip].float().logsumexp(-1) for strip in strips(logits)]
    return torch.cat(found) if found else logits.new_zeros(0, dtype=torch.float32)
