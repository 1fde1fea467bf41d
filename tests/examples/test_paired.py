"""Paired differences: the interval is Student's, and the words say no more than it does."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from paired import Difference, paired_difference


def test_a_known_interval() -> None:
    # Differences 1 .. 5: mean 3, standard error sqrt(2.5 / 5); the 97.5 % quantile of t with 4 degrees of freedom is 2.776445.
    found = paired_difference([11, 12, 13, 14, 15], [10, 10, 10, 10, 10])
    assert (found.mean, found.pairs) == (3.0, 5)
    assert found.low == pytest.approx(3 - 2.776445 * 0.5**0.5, abs=1e-5)
    assert found.high == pytest.approx(3 + 2.776445 * 0.5**0.5, abs=1e-5)


@pytest.mark.parametrize(("pairs", "level"), [(2, 0.95), (5, 0.95), (5, 0.99), (30, 0.8)])
def test_the_interval_is_that_of_scipys_paired_test(pairs: int, level: float) -> None:
    rng = np.random.default_rng(pairs)
    ours, theirs = rng.normal(0.3, 1, pairs), rng.normal(0, 1, pairs)
    found, wanted = paired_difference(list(ours), list(theirs), level), stats.ttest_rel(ours, theirs).confidence_interval(level)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_equal_differences_are_an_interval_of_no_width() -> None:
    found = paired_difference([3, 4, 5], [1, 2, 3])
    assert (found.low, found.mean, found.high) == (2, 2, 2)


@pytest.mark.parametrize(
    ("low", "high", "lower_is_better", "words"),
    [
        (0.1, 0.3, False, "gain"),
        (0.1, 0.3, True, "loss"),
        (-0.3, -0.1, False, "loss"),
        (-0.3, -0.1, True, "gain"),
        (-0.1, 0.3, False, "no gain shown"),
        (-0.3, 0.1, True, "no gain shown"),
        (0.0, 0.3, False, "no gain shown"),
        (0.0, 0.0, True, "no gain shown"),
    ],
)
def test_the_verdict(low: float, high: float, lower_is_better: bool, words: str) -> None:
    assert Difference((low + high) / 2, low, high, 5).verdict(lower_is_better=lower_is_better) == words


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], [2.0]), ([], []), ([1.0, 2.0], [1.0, 2.0, 3.0]), ([1.0, 2.0], [1.0])])
def test_what_makes_no_pairs_is_refused(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match=f"{len(ours)} and {len(theirs)} results"):
        paired_difference(ours, theirs)
