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
    """Sums over tokens, in one vector, float64 [experts + 3]: exact up to 2^53 tokens.

    chosen [experts]: how many tokens chose each expert. Scalars: tokens; entropy of the router, in nats; dropped, the choices
    that capacity left no room for. Padding does not count.
    """

    sums: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, chosen: Tensor, dropped: Tensor, probability: Tensor, weight: Tensor | None) -> Self:
        """Of one run: chosen, dropped (bool), probability [tokens, experts]; weight [tokens]: 0 for padding."""
        real = (torch.ones_like(probability[:, 0]) if weight is None else weight).double()
        each = torch.cat((chosen, torch.stack((torch.ones_like(real), entropy(probability), dropped.sum(-1)), -1)), -1)
        return cls((each * real.unsqueeze(-1)).sum(0))

    @property
    def chosen(self) -> Tensor:
        return self.sums[:-3]

    def added(self, other: Count, sign: int = 1) -> Count:
        return Count(self.sums + sign * other.sums.to(self.sums.device))


class Tally:
    """What a layer counted, for each reader since it last looked; readers are named."""

    def __init__(self) -> None:
        self._total: Count | None = None
        self._seen: dict[str, Count] = {}

    def add(self, count: Count) -> None:
        self._total = count if self._total is None else count.added(self._total)

    def take(self, reader: str) -> Count | None:
        """What came since that reader's last call; None: nothing."""
        total, seen = self._total, self._seen.get(reader)
        if total is None or total is seen:
            return None
        self._seen[reader] = total
        return total if seen is None else total.added(seen, -1)
