"""The copies of an upcycled FFN, each reduced to what its largest singular values say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.moe_config import MoEConfig
from moeify.layers.dense_ffn.mean import Mean, copies_of
from moeify.layers.dense_ffn.strategy import DenseWeights, dtype_of
from moeify.layers.moe_layer import MoELayer


@dataclass(frozen=True)
class SVD:
    """Each copy's matrices cut to their largest singular values, the parts put together; of biases the mean (knowledge
    gathering by SVD: OneS, Xue et al. 2022).

    rank: singular values that are kept of each; None: those of a matrix divided by the copies, so that the parts together
    have as many as one matrix. total: "sum" puts the parts together as they are, which is right for experts that have nothing
    in common; "mean" weighs them as `Mean` does, which is right for copies of one FFN (the full rank gives the mean).
    """

    rank: int | None = None
    total: Literal["mean", "sum"] = "mean"

    name: ClassVar[str] = "svd"

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"rank of svd is {self.rank}: choose 1 or more")
        if self.total not in ("mean", "sum"):
            raise UsageError(f"total of svd is {self.total!r}: choose mean or sum")

    def check(self, config: MoEConfig, neurons: int) -> None:
        Mean().check(config, neurons)
        most = min(neurons, max(config.hidden, config.output))
        if self.rank is not None and self.rank > most:
            raise UsageError(f"rank of svd is {self.rank}, its matrices have {most} singular values: choose 1 to {most}")

    def equals(self, config: MoEConfig) -> None:
        return None

    def gather(self, layer: MoELayer) -> DenseWeights:
        count = sum(1 for _ in copies_of(layer))
        parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for share, copy in copies_of(layer):
            for name in copy.keys() & {"up", "gate", "down"}:
                parts.setdefault(name, []).append(self._part(copy[name], share if self.total == "mean" else 1.0, count))
        found = {name: torch.cat([left for left, _ in pairs], 1) @ torch.cat([right for _, right in pairs])
                 for name, pairs in parts.items()}  # fmt: skip
        return Mean().gather(layer) | {name: value.to(dtype_of(layer)) for name, value in found.items()}

    def _part(self, matrix: Tensor, weight: float, copies: int) -> tuple[Tensor, Tensor]:
        """Two factors of the matrix times weight: [rows, rank] and [rank, columns]."""
        rank = self.rank or max(1, min(matrix.shape) // copies)
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank] * (s[:rank] * weight), v[:rank]
