"""The numbers that stochastic experts are chosen by (docs/moe-layer.md, 'Stochastic choice'): integers, the same everywhere."""

from __future__ import annotations

import torch
from torch import Tensor

_PRIME = 2**31 - 1


def hashed(first: Tensor, second: Tensor, seed: int) -> Tensor:
    """hash(first, second), int64 in 0 .. 2^31 - 2 of the broadcast shape; both int64. seed: 0 .. 2^31 - 2."""
    mixed = _mix(first % _PRIME * 48271 + seed)
    mixed = _mix(mixed + second % _PRIME * 69621)
    return _mix(mixed * 48271 + 40692)


def ring_scores(drawn: Tensor, experts: int) -> Tensor:
    """Scores, float32 [..., experts], whose k largest are the experts from `drawn` [...] (int64) on, in a ring."""
    behind = (torch.arange(experts, device=drawn.device) - drawn.unsqueeze(-1)) % experts
    return 1 - behind.float() / experts


def _mix(value: Tensor) -> Tensor:
    value = value % _PRIME
    square = value * value % _PRIME
    return square * square % _PRIME * value % _PRIME
