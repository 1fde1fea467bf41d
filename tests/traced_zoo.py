"""Models of the zoo, traced and matched once for all tests of a process. Do not change these models."""

from __future__ import annotations

from functools import cache

from moeify.frontend.match import Found, match
from moeify.frontend.trace import Traced, trace
from zoo import ZOO, Zoo


@cache
def traced_zoo(name: str) -> tuple[Zoo, Traced, Found]:
    """The model with its example, its graph, and what was found in it."""
    zoo = ZOO[name]()
    traced = trace(zoo.model, zoo.example)
    return zoo, traced, match(zoo.model, traced)
