"""What is said first."""

from __future__ import annotations

import pytest

from moeify.measure.divergence import Divergence
from moeify.measure.evaluation import Score
from moeify.measure.perplexity import Perplexity
from moeify.measure.verdicts import is_void, verdicts


def scored(name: str, perplexity: float | None = None, error: float | None = None) -> Score:
    return Score(
        name, "",
        0.5,
        None if perplexity is None else Perplexity(perplexity, 0.0, None, 1),
        None if error is None else Divergence("output", 1, None, None, error, 0.0, 1.0),
    )  # fmt: skip


def test_a_loss_is_told_with_both_figures() -> None:
    (said,) = verdicts([scored("converted", 41.62), scored("static-mask", 38.2)], 0.5, None)
    assert said.startswith("the conversion loses to a static mask, which routes nothing: perplexity 41.62 at 50.0% active")
    assert "against 38.2 at 50.0% active; try --recipe best" in said
    (said,) = verdicts([scored("converted", error=0.3), scored("static-mask", error=0.2)], None, None)
    assert "relative error 0.3 at" in said


@pytest.mark.parametrize(
    "scores",
    [
        [scored("converted", 41.0), scored("static-mask", 41.5)],
        [scored("converted", error=1e-8), scored("static-mask", error=0.0)],
        [scored("converted", 41.0)],
        [scored("converted"), scored("static-mask")],
    ],
)
def test_there_is_nothing_to_say(scores: list[Score]) -> None:
    assert not list(verdicts(scores, 0.5, 0.5))


def test_one_per_cent_more_than_the_budget_is_void() -> None:
    assert not is_void(0.505, 0.5)
    assert is_void(0.5051, 0.5)
    assert not is_void(None, 0.5)
    assert not is_void(0.9, None)
    (said,) = verdicts([], 0.6, 0.5)
    assert said.startswith("void: on this data a token uses 60.0% of the dense FFNs' weights, 20.0% more")
