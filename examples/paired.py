"""Paired comparisons: two ways to train, the same seeds, the differences with their interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences and its confidence interval, in the measure's own unit; pairs: how many seeds."""

    mean: float
    low: float
    high: float
    pairs: int

    def verdict(self, *, lower_is_better: bool = False) -> str:
        """What the interval allows to say: "gain", "loss", or "no gain shown" where it holds 0."""
        if self.low <= 0 <= self.high:
            return "no gain shown"
        return "gain" if (self.mean < 0) == lower_is_better else "loss"

    def __str__(self) -> str:
        return f"{self.mean:+.4g} [{self.low:+.4g}, {self.high:+.4g}]"


def paired_difference(ours: Sequence[float], theirs: Sequence[float], level: float = 0.95) -> Difference:
    """ours - theirs, seed by seed: the mean with the interval of Student's t for n - 1 degrees of freedom.

    The interval says how the mean over seeds would scatter; it knows nothing of other data or models. Raises ValueError for
    lengths that differ and fewer than two pairs.
    """
    n = len(ours)
    if n < 2 or n != len(theirs):
        raise ValueError(f"{n} and {len(theirs)} results: a paired difference takes two or more pairs")
    differences = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    mean = float(differences.mean())
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * float(differences.std(ddof=1)) / n**0.5
    return Difference(mean, mean - half, mean + half, n)
