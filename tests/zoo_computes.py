"""A model that computes a given function of a linear's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from zoo import built
from zoo_modules import HIDDEN


class Computes(nn.Module):
    """A linear, and then whatever the function computes."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(HIDDEN, HIDDEN)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.linear(x))


def computes(function: Callable[[Tensor], Any]) -> nn.Module:
    return built(lambda: Computes(function))
