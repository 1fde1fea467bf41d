"""An even choice of a stream's rows, in bounded memory and without chance."""

from __future__ import annotations

import torch
from torch import Tensor


class EvenSample:
    """Every n-th row of a stream, n a power of two as small as the capacity allows: more than half of it is kept once that many
    rows have come. Rows stand in the order in which they came.
    """

    def __init__(self, capacity: int) -> None:
        """capacity: rows to keep at most, 1 or more."""
        self.capacity, self.step, self.seen = capacity, 1, 0
        self._kept: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Takes rows [rows, width] as float32 copies on the CPU."""
        start = -self.seen % self.step
        self.seen += len(rows)
        self._kept.append(rows[start :: self.step].detach().to("cpu", torch.float32, copy=True))
        while sum(map(len, self._kept)) > self.capacity:
            self._kept, self.step = [self.rows()[::2].clone()], 2 * self.step

    def rows(self) -> Tensor:
        """The sample, float32 [kept, width]; no rows were added: [0, 0]."""
        return torch.cat(self._kept) if self._kept else torch.empty(0, 0)
