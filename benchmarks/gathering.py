"""How far a dense model gathered from trained copies is from the MoE model: four tasks, 4 copies in each of two residual FFNs.

python -m benchmarks.gathering [--steps 300] [--write]
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import moeify
from benchmarks.rows import arguments, machine, show
from moeify.layers.dense_ffn import SVD, Gathering, Mean

HIDDEN, NEURONS, TASKS = 16, 48, 4

STRATEGIES: dict[str, Gathering] = {
    "mean": Mean(), "svd": SVD(), "svd of rank 14": SVD(rank=14), "svd, sum": SVD(total="sum"),
}  # fmt: skip


class Block(nn.Module):
    """A residual FFN."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, NEURONS), nn.Linear(NEURONS, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
        return y


@dataclass
class Tasks:
    """Inputs around four centres, each with a target of its own; and one target for all, for the dense model."""

    generator: torch.Generator

    def __post_init__(self) -> None:
        self.centres = 2 * self._normal(TASKS, HIDDEN)
        self.maps = self._normal(TASKS + 1, HIDDEN, HIDDEN) / 4

    def draw(self, rows: int, one: bool = False) -> tuple[Tensor, Tensor]:
        """(x, y), both [rows, HIDDEN]; one: with the target that is the same everywhere."""
        task = torch.randint(TASKS, (rows,), generator=self.generator)
        x = self.centres[task] + self._normal(rows, HIDDEN)
        return x, 2 * torch.tanh(torch.einsum("bh,bhd->bd", x, self.maps[torch.full_like(task, TASKS) if one else task]))

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)


def train(model: nn.Module, tasks: Tasks, steps: int, lr: float, one: bool) -> None:
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=lr)
    for _ in range(steps):
        x, y = tasks.draw(256, one)
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    model.eval()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=300, help="of training the copies")
    options = parser.parse_args()
    tasks = Tasks(torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = nn.Sequential(Block(), Block())
    train(model, tasks, 1500, 1e-3, one=True)
    model = moeify.convert(model, recipe="upcycle", experts=TASKS, example=(tasks.draw(4)[0],)).model
    train(model, tasks, options.steps, 2e-3, one=False)
    x, y = tasks.draw(4000)
    losses, distances = {"copies": float((model(x) - y).square().mean())}, {}
    for name, strategy in STRATEGIES.items():
        done = moeify.to_dense(copy.deepcopy(model), by=strategy, data=[(x,)])
        assert done.divergence is not None
        distances[name] = done.divergence.relative_error
        losses[name] = float((done.model(x) - y).square().mean())
    show(
        {"benchmark": "gathering", "steps": options.steps, **machine(), "distances": distances, "losses": losses}, options.write
    )


if __name__ == "__main__":
    main()
