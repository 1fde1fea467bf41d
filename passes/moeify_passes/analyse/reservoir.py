"""A uniform sample of a stream of rows, in bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor


class Reservoir:
    """Algorithm R (Vitter 1985): after n rows, each is in the sample with the same chance, capacity / n.

    While no more than `capacity` rows have come they stand in the order in which they came.
    """

    def __init__(self, capacity: int, generator: torch.Generator) -> None:
        """capacity: rows to keep, 1 or more."""
        self.capacity, self.generator, self.seen = capacity, generator, 0
        self._kept: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Takes rows [rows, width] as float32 copies."""
        if self._kept is None:
            self._kept = torch.empty(self.capacity, rows.shape[1])
        room = min(max(self.capacity - self.seen, 0), len(rows))
        self._kept[self.seen : self.seen + room] = rows[:room]
        late = rows[room:]
        counts = torch.arange(self.seen + room + 1, self.seen + len(rows) + 1)
        slots = (torch.rand(len(late), generator=self.generator, dtype=torch.float64) * counts).long()
        for row in torch.nonzero(slots < self.capacity).flatten().tolist():
            self._kept[slots[row]] = late[row]
        self.seen += len(rows)

    def rows(self) -> Tensor:
        """The sample, float32 [kept, width]; no rows were added: [0, 0]."""
        return torch.empty(0, 0) if self._kept is None else self._kept[: min(self.seen, self.capacity)]
