"""`convert` with an alignment at its end: of a folder, of a module in memory, and what the report and the folder say of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import moeify
from converted import distance, main_output
from moeify.errors import InputError, UsageError
from moeify.export.onnx.exporting import export_onnx
from zoo import ZOO, ids

HOW = moeify.Alignment(minutes=None, steps=24, learning_rate=0.05, tokens=32)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    torch.save({"input_ids": ids(80, 16)}, tmp_path / "ids.pt")
    return tmp_path / "ids.pt"


def said(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return main_output(model(input_ids=ids()))


@pytest.mark.sampled
@pytest.mark.parametrize("recipe", ["random", "markers"])  # one does not look at data by itself
def test_a_folder_is_aligned_and_comes_back_so(recipe: str, data: Path, tmp_path: Path) -> None:
    dense = ZOO["llama"]().model
    dense.save_pretrained(tmp_path / "dense")  # type: ignore[operator]  # a transformers model
    options = {"recipe": recipe, "experts": 4, "top_k": 1, "calibrate": data}
    plain = moeify.convert(tmp_path / "dense", **options)  # type: ignore[arg-type]  # each fits
    done = moeify.convert(tmp_path / "dense", tmp_path / "out", align=HOW, **options)  # type: ignore[arg-type]
    assert distance(said(done.model), said(dense)) < distance(said(plain.model), said(dense))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["aligned"]["steps"] == 24
    assert report["aligned"]["after"] < report["aligned"]["before"]
    assert any(note.startswith("aligned with the dense model in 24 steps on 72 rows") for note in report["notes"])
    again = moeify.load(tmp_path / "out")
    assert distance(said(again), said(done.model)) < 1e-6
    checks = export_onnx(again, {"input_ids": ids()}, tmp_path / "m.onnx").checks
    assert max(check.distance for check in checks) < 1e-5


@pytest.mark.slow
def test_a_module_in_memory_is_aligned_with_what_it_was() -> None:
    dense, other, model = (ZOO["llama"]().model for _ in range(3))
    example, rows = {"input_ids": ids()}, [{"input_ids": ids(80, 16)}]
    plain = moeify.convert(other, example=example, recipe="random", experts=4, top_k=1)
    done = moeify.convert(model, example=example, recipe="random", experts=4, top_k=1, calibrate=rows, align=HOW)
    assert done.model is model
    assert distance(said(model), said(dense)) < distance(said(plain.model), said(dense))


@pytest.mark.slow
def test_an_alignment_reads_all_sources(data: Path, tmp_path: Path) -> None:
    torch.save({"input_ids": ids(80, 16).flip(1)}, tmp_path / "more.pt")
    dense = ZOO["llama"]().model
    done = moeify.convert(
        dense, example={"input_ids": ids()}, recipe="markers", experts=4, top_k=1, calibrate=[data, tmp_path / "more.pt"],
        align=HOW,
    )  # fmt: skip
    assert done.report.data is not None
    assert done.report.data["name"] == "ids.pt + more.pt"
    assert any(note.startswith("aligned with the dense model in 24 steps on 144 rows") for note in done.report.notes)


@pytest.mark.slow
def test_more_data_are_read_by_the_alignment_alone(data: Path, tmp_path: Path) -> None:
    torch.save({"input_ids": ids(80, 16).flip(1)}, tmp_path / "more.pt")
    options: dict[str, Any] = {
        "example": {"input_ids": ids()},
        "recipe": "markers",
        "experts": 4,
        "top_k": 1,
        "calibrate": data,
    }
    plain, done = (
        moeify.convert(ZOO["llama"]().model, align=HOW, align_on=more, **options) for more in (None, tmp_path / "more.pt")
    )
    assert plain.report.aligned is not None
    assert done.report.aligned is not None
    assert (plain.report.aligned["rows"], done.report.aligned["rows"]) == (72, 144)
    assert (plain.report.aligned["held_out"], done.report.aligned["held_out"]) == (8, 16)
    assert done.report.data == plain.report.data
    assert done.report.data is not None


def test_more_data_want_an_alignment_and_are_looked_at_before_anything_is_read(data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="--align-on is more text for an alignment, and there is none: give --align minutes=10"
    ):
        moeify.convert(tmp_path / "not read", tmp_path / "out", calibrate=data, align_on=data)
    with pytest.raises(InputError, match=r"absent\.txt"):
        moeify.convert(tmp_path / "not read", tmp_path / "out", calibrate=data, align=HOW, align_on=tmp_path / "absent.txt")


def test_without_data_there_is_nothing_to_align_on(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="aligning needs text without labels, or other inputs: give --calibrate too"):
        moeify.convert(tmp_path / "not read", tmp_path / "out", align=HOW)
