"""The pipeline written by hand: every pass, its options and its order are yours.

python examples/pipeline_by_hand.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import moeify
from moeify_passes import (
    ActivationMarkers,
    Calibrate,
    ClusterNeurons,
    Compensate,
    FindFeedForward,
    InsertRouter,
    MatchDense,
    NormRegression,
    SplitExperts,
)


class Block(nn.Module):
    """A residual feed-forward block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64)
        self.up = nn.Linear(64, 256)
        self.down = nn.Linear(256, 64)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(nn.functional.gelu(self.up(self.norm(x))))
        return x + y


def make_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*(Block() for _ in range(3)))


def main() -> None:
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(8, 16, 64, generator=generator),) for _ in range(8)]

    model = make_model().eval()
    with torch.no_grad():
        dense = model(*batches[0])
    graph = moeify.open_model(model, example=batches[0])
    pipeline = moeify.Pipeline(
        (
            FindFeedForward(),
            moeify.EachLayer(
                (
                    Calibrate(tokens=1024),
                    ClusterNeurons(experts=8, by=ActivationMarkers(top=0.1)),
                    SplitExperts(),
                    MatchDense(),
                    InsertRouter(top_k=4, by=NormRegression()),
                    Compensate(),
                )
            ),
        )
    )
    report = pipeline.run(graph, batches, seed=0)
    print(report)

    with tempfile.TemporaryDirectory() as folder:
        moeify.save(graph, Path(folder) / "moe", report=report)
        again = moeify.load(Path(folder) / "moe", factory=make_model)
        with torch.no_grad():
            for k in (8, 4, 2):
                moeify.set_top_k(again, k)  # another budget, without converting again
                error = (again(*batches[0]) - dense).norm() / dense.norm()
                print(f"top-{k} of 8: relative error {error:.4f}")


if __name__ == "__main__":
    main()
