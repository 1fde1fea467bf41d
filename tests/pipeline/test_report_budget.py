"""What active fraction recipes are asked for."""

from __future__ import annotations

import pytest

from moeify.api import registry
from moeify.pipeline.budget import budget_of
from moeify.pipeline.configure import configure
from moeify.pipeline.pipeline import flatten


@pytest.mark.parametrize(
    ("recipe", "options", "budget"),
    [
        ("emoe", {"top_k": 2}, None),
        ("emoe", {"active": 0.25}, 0.25),
        ("best", {"active": 0.6}, 0.6),
        ("best", {"settings": {"allocate-budget.active": 0.4}}, 0.4),
        ("static", {"active": 0.3}, 0.3),
        ("upcycle", {}, None),
    ],
)
def test_the_budget_of_a_recipe(recipe: str, options: dict[str, float], budget: float | None) -> None:
    pipeline = configure(recipe, **options).build(registry())  # type: ignore[arg-type]  # options of several types
    assert budget_of(flatten(pipeline.passes)) == budget
