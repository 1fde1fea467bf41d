"""What a way of dividing a budget says, and how much of the budget it then spends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moeify.ir.feed_forward import FeedForward

#: The active fraction that a layer would like, perhaps outside of 0 .. 1, by a level that is the same for all layers and says
#: how much there is to give away. Never falls as the level rises.
ShareRule = Callable[[float], float]


@dataclass(frozen=True)
class Limits:
    """active: the mean of all sites' active fractions, by their weights. least: no site gets less than this. whole: a site that
    would get more than this fraction gets 1.0."""

    active: float
    least: float
    whole: float

    def within(self, wish: float) -> float:
        """What a site gets that would like `wish`."""
        wish = max(wish, self.least)
        return 1.0 if wish > self.whole else wish


def divided(limits: Limits, sites: Sequence[FeedForward], rules: Sequence[ShareRule]) -> list[float]:
    """The active fraction of each site at the highest level at which their mean, by weights, is at most what is to be had."""
    weights = [site.parameters for site in sites]

    def shares(level: float) -> list[float]:
        return [limits.within(rule(level)) for rule in rules]

    def fits(level: float) -> bool:
        return sum(s * w for s, w in zip(shares(level), weights)) <= limits.active * sum(weights) * (1 + 1e-12)

    low, high = -1.0, 1.0
    while not fits(low) and low > -1e6:
        low *= 2
    while fits(high) and high < 1e6:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return shares(low)
