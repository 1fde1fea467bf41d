"""A sweep from end to end on tiny models: rows as they are measured, gone on with, and one picture."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import moeify
from moeify.api import sweep_cell
from moeify.errors import InputError, MissingExtraError, MoeifyError, OutputError, UsageError
from zoo import ZOO, ids


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two residual FFNs on disk."""
    torch.save(ZOO["residual-stack"]().model, tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """Two recipes at two budgets on random rows."""
    example = ZOO["residual-stack"]().example
    assert isinstance(example, tuple)
    generator = torch.Generator().manual_seed(0)
    torch.save(torch.randn(64, example[0].shape[-1], generator=generator), tmp_path / "rows.pt")
    torch.save(example, tmp_path / "example.pt")
    return {
        "recipes": ["static", "emoe"], "active": [0.5, 0.75], "calibrate": tmp_path / "rows.pt", "tokens": 48,
        "evaluate": tmp_path / "rows.pt", "time": False, "allow_pickle": True, "example": tmp_path / "example.pt",
    }  # fmt: skip


def test_rows_and_a_picture(model: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    found = moeify.sweep(model, tmp_path / "out", **options)
    assert [(row["recipe"], row["active"]) for row in found.rows] == [(r, a) for r in ("static", "emoe") for a in (0.5, 0.75)]
    for row in found.rows:
        assert 0 < row["active_fraction"] <= row["active"]
        assert row["relative_error"] > 0
        assert (row["void"], row["ms"], row["perplexity"]) == (False, None, None)
        assert row["layer_errors"]["converted"] > 0
        assert row["seconds"].keys() == {"convert", "evaluate"}
    written = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert written == list(found.rows)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["rows.jsonl", "sweep.png", "sweep.svg"]


@pytest.mark.slow
def test_a_language_model_has_perplexities(tmp_path: Path, options: dict[str, Any]) -> None:
    ZOO["llama"]().model.save_pretrained(tmp_path / "llama")  # type: ignore[operator]  # a transformers model
    torch.save({"input_ids": ids(12, 16)}, tmp_path / "ids.pt")
    options |= {"recipes": ["static"], "active": [0.5], "example": None, "calibrate": tmp_path / "ids.pt"}
    (row,) = moeify.sweep(tmp_path / "llama", tmp_path / "out", **options | {"evaluate": tmp_path / "ids.pt"}).rows
    assert row["ratio"] == pytest.approx(row["perplexity"] / row["dense_perplexity"])
    assert row["kl"] > 0


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_stopped(
    model: Path, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[float] = []

    def counted(*args: Any, **keywords: Any) -> Any:
        if len(converted) == 1:
            raise KeyboardInterrupt
        converted.append(1)
        return moeify.convert(*args, **keywords)

    monkeypatch.setattr(sweep_cell, "convert", counted)
    options |= {"recipes": ["static"]}
    with pytest.raises(KeyboardInterrupt):
        moeify.sweep(model, tmp_path / "out", **options)
    rows = tmp_path / "out" / "rows.jsonl"
    assert len(rows.read_text().splitlines()) == 1
    rows.write_text(rows.read_text() + '{"digest": "cut')  # as when the power goes
    monkeypatch.setattr(sweep_cell, "convert", moeify.convert)
    found = moeify.sweep(model, tmp_path / "out", **options)
    assert (found.taken_over, len(found.rows), len(rows.read_text().splitlines())) == (1, 2, 2)
    again = moeify.sweep(model, tmp_path / "out", **options)
    assert (again.taken_over, again.rows) == (2, found.rows)
    other = moeify.sweep(model, tmp_path / "out", **options | {"active": [0.5], "tokens": 40})
    assert other.taken_over == 0


@pytest.mark.slow
def test_a_recipe_that_cannot_reach_a_budget_says_so_in_its_row(model: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    options |= {"recipes": ["static", "thor", "emoe"], "active": [0.02]}
    static, thor, emoe = moeify.sweep(model, tmp_path / "out", **options).rows
    assert "error" not in static
    assert "thor" in thor["error"] or "insert-router" in thor["error"]
    assert "active" in emoe["error"]


@pytest.mark.slow
def test_times_in_onnx_runtime(model: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    (row,) = moeify.sweep(model, tmp_path / "out", **options | {"recipes": ["static"], "active": [0.5], "time": True}).rows
    assert row["ms"].keys() == {"1", "128"}
    assert all(times[name] > 0 for times in row["ms"].values() for name in ("dense", "converted"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["rows.jsonl", "sweep.png", "sweep.svg"]


EARLY: dict[str, tuple[dict[str, Any], type[MoeifyError], str]] = {
    "an unknown recipe": ({"recipes": ["static", "beest"]}, UsageError, "did you mean 'best'"),
    "no recipe": ({"recipes": []}, UsageError, "at least one recipe"),
    "a budget of nothing": ({"active": [0.5, 0.0]}, UsageError, r"active is 0\.0: choose fractions above 0 and up to 1"),
    "a budget above all": ({"active": [1.5]}, UsageError, r"active is 1\.5"),
    "no calibration text": ({"calibrate": "nowhere.txt"}, InputError, "nowhere.txt"),
    "no text to judge on": ({"evaluate": "nowhere.txt"}, InputError, "nowhere.txt"),
    "another device": ({"time": True, "device": "meta"}, UsageError, "--no-time"),
}


@pytest.mark.parametrize("case", EARLY)
def test_what_cannot_work_is_said_before_a_weight_is_read(case: str, tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "model").mkdir()  # it holds nothing to read
    wrong, error, message = EARLY[case]
    with pytest.raises(error, match=message):
        moeify.sweep(tmp_path / "model", tmp_path / "out", **options | wrong)
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_it_says_so_first(tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'moeify[plot]'")):
        moeify.sweep(tmp_path / "model", tmp_path / "out", **options)


def test_somebody_elses_folder_is_left_alone(model: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("dear")
    with pytest.raises(OutputError, match="not an earlier sweep's folder"):
        moeify.sweep(model, tmp_path / "out", **options)
    (tmp_path / "out" / "rows.jsonl").write_text("a line\n")
    with pytest.raises(OutputError, match="no measured row"):
        moeify.sweep(model, tmp_path / "out", **options)
