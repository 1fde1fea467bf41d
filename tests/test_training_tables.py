"""The tables of docs/examples.md say what the rows of benchmarks/training/ say."""

from __future__ import annotations

from benchmarks.training_tables import EXPERIMENTS, PAGE, page


def test_the_tables_are_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"<!-- {name} -->" in text for name in EXPERIMENTS)
    command = "run PYTHONPATH=examples python -m benchmarks.training_tables --write"
    assert text == page(text), f"{PAGE.name} is stale: {command}"
