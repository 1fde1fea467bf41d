"""What one layer notes in the forwards of training: losses of the last one, and what it counted in all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from moeify.layers.router_losses import entropy


@dataclass(eq=False)
class Notes:
    """Of all runs of a layer in one forward. losses: by name, with their weights on. tracked: is their gradient seen to?"""

    losses: dict[str, Tensor]
    tracked: bool
    count: Count | None

    def added(self, other: Notes | None) -> Notes:
        """With those of an earlier run of the same layer in the same forward."""
        if other is None:
            return self
        losses = {name: loss + other.losses[name] for name, loss in self.losses.items()}
        count = self.count if self.count is None or other.count is None else self.count.added(other.count)
        return Notes(losses, self.tracked and other.tracked, count)


@dataclass(frozen=True, eq=False)
class Count:
    """chosen: float64 [experts], how many tokens chose each; tokens and entropy (nats): float64 scalars, summed."""

    chosen: Tensor
    tokens: Tensor
    entropy: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, chosen: Tensor, probability: Tensor, weight: Tensor | None) -> Self:
        """Of one run: chosen (bool), probability [tokens, experts]; weight [tokens]: 0 for padding."""
        real = torch.ones_like(probability[:, 0]) if weight is None else weight
        real = real.double()
        return cls((chosen * real.unsqueeze(-1)).sum(0), real.sum(), (entropy(probability) * real).sum())

    def added(self, other: Count) -> Count:
        return Count(self.chosen + other.chosen, self.tokens + other.tokens, self.entropy + other.entropy)


class Tally:
    """What a layer counted, for each reader since it last looked; readers are named. (float64 is exact up to 2^53 tokens.)"""

    def __init__(self) -> None:
        self._total: Count | None = None
        self._seen: dict[str, Count | None] = {}

    def add(self, count: Count) -> None:
        self._total = count if self._total is None else self._total.added(count)

    def take(self, reader: str) -> Count | None:
        """What came since that reader's last call; None: nothing."""
        total, seen = self._total, self._seen.get(reader)
        self._seen[reader] = total
        if total is None or total is seen:
            return None
        if seen is None:
            return total
        return Count(total.chosen - seen.chosen, total.tokens - seen.tokens, total.entropy - seen.entropy)
