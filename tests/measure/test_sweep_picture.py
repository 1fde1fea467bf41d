"""The picture of a sweep shows what the rows say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moeify.measure.sweep_picture import draw, loss_of, relative_times


def row(recipe: str, active: float, ratio: float | None, **others: Any) -> dict[str, Any]:
    return {"recipe": recipe, "active_fraction": active, "ratio": ratio, "ms": None, **others}


TIMES = {"1": {"dense": 2.0, "converted": 1.0}, "128": {"dense": 8.0, "converted": 6.0}}


def test_recipes_and_axes_are_named(tmp_path: Path) -> None:
    rows = [row("best", 0.5, 2.0, ms=TIMES), row("static", 0.5, 3.0, ms=TIMES, void=True), {"recipe": "thor", "error": "no"}]
    assert [path.name for path in draw(rows, tmp_path / "sweep")] == ["sweep.png", "sweep.svg"]
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "sweep.svg").read_text()
    for words in ("best", "static", "perplexity / dense", "128 tokens, one thread", "1 token, one thread"):
        assert f"<!-- {words}" in text or words in text
    assert "thor" not in text


def test_equal_rows_give_equal_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        draw([row("best", 0.5, 2.0)], tmp_path / name)
    for kind in ("png", "svg"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()


def test_nothing_to_show_is_no_file(tmp_path: Path) -> None:
    assert draw([{"recipe": "thor", "error": "no"}], tmp_path / "sweep") == ()
    assert not list(tmp_path.iterdir())


def test_figures_of_a_row() -> None:
    assert loss_of(row("best", 0.5, 2.0, relative_error=0.3)) == 2.0
    assert loss_of(row("best", 0.5, None, relative_error=0.3)) == 0.3
    assert loss_of({"error": "no"}) is None
    assert relative_times(row("best", 0.5, 2.0, ms=TIMES)) == {"1": 0.5, "128": 0.75}
    assert relative_times({"error": "no"}) == {}
