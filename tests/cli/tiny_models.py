"""A tiny model, its factory and its inputs, by names that the command line can import: `cli.tiny_models:block`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

HIDDEN, NEURONS = 8, 32

#: What names the factory and the example on the command line.
TINY = "--factory cli.tiny_models:stack --example cli.tiny_models:example"


class Block(nn.Module):
    """A residual FFN."""

    def __init__(self, neurons: int = NEURONS) -> None:
        super().__init__()
        self.up = nn.Linear(HIDDEN, neurons)
        self.down = nn.Linear(neurons, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(nn.functional.relu(self.up(x)))
        return y


def stack() -> nn.Module:
    """Two blocks with weights that are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(Block(), Block())


def deep_stack() -> nn.Module:
    """Five blocks with weights that are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(*(Block() for _ in range(5)))


def wide_stack() -> nn.Module:
    return nn.Sequential(Block(2 * NEURONS), Block(2 * NEURONS))


def linear() -> nn.Module:
    """A model without an FFN."""
    return nn.Sequential(nn.Linear(HIDDEN, HIDDEN))


class Branching(Block):
    """A model that cannot be traced: a branch on values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


def branching() -> nn.Module:
    return nn.Sequential(Branching(), Branching())


def failing() -> nn.Module:
    raise RuntimeError("no weights\nat home")


def leaving() -> nn.Module:
    raise SystemExit(3)


def number() -> int:
    return 7


def example() -> tuple[Tensor]:
    return (torch.linspace(-1, 1, 5 * HIDDEN).reshape(5, HIDDEN),)


def half_example() -> tuple[Tensor]:
    return (example()[0].bfloat16(),)


def wrong_example() -> tuple[Tensor]:
    return (torch.zeros(5, HIDDEN + 1),)


def batches() -> Iterator[tuple[Tensor]]:
    """Two batches of 64 rows."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        yield (torch.randn(64, HIDDEN, generator=generator),)


def failing_batches() -> Iterator[tuple[Tensor]]:
    yield next(batches())
    raise ValueError("the reader broke")


def no_batches() -> Iterator[tuple[Tensor]]:
    return iter(())


def endless() -> Iterator[tuple[Tensor]]:
    """Batches without end; from the first on there is a file `reading` in the current folder."""
    Path("reading").touch()
    while True:
        yield next(batches())
