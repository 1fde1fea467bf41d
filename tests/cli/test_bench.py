from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cli.command_line import Outcome
from cli.tiny_models import HIDDEN, NEURONS, TINY
from moeify.speed.machine import Roof

Run = Callable[[str], Outcome]

SHORT = "--rounds 2 --seconds 1"
#: Floats of one neuron of the tiny model.
ROW = 2 * HIDDEN


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that need not be measured, and whose caches hold little."""
    monkeypatch.setattr("moeify.speed.measuring.measure_roof", lambda threads: Roof(threads, 1e10, 1e11))
    monkeypatch.setattr("moeify.speed.layer_subject.last_level_cache", lambda: 10_000)


@pytest.fixture
def converted(moeify: Run) -> None:
    """The tiny model, two FFNs, as the folder `out`, half of its experts on."""
    assert moeify(f"convert model.pt -o out {TINY} --experts 4 --top-k 2 --quiet").code == 0


@pytest.mark.slow
@pytest.mark.usefixtures("converted")
def test_a_folder_is_timed_against_what_it_was_made_from(moeify: Run, tmp_path: Path) -> None:
    done = moeify(f"bench out --tokens 1,8 {TINY} {SHORT} --json --plot p.svg --keep files")
    assert (done.code, done.err) == (0, "")
    one, many = done.data["cells"]
    assert [(cell["tokens"], cell["phase"], cell["rounds"]) for cell in (one, many)] == [(1, "run", 2), (8, "run", 2)]
    router, weights = 4 * HIDDEN, 2 * NEURONS * ROW
    assert one["forms"]["dense"]["weight_bytes"] == 4 * weights
    assert one["forms"]["converted"]["weight_bytes"] == 4 * (weights / 2 + 2 * router)  # half of the experts
    assert many["forms"]["dense"]["flops"] == 8 * one["forms"]["dense"]["flops"] == 8 * 2 * weights
    for form in one["forms"].values():
        assert 0 < form["wall_ms"]["lower"] <= form["wall_ms"]["median"] <= form["wall_ms"]["upper"]
    times = {name: form["wall_ms"]["median"] for name, form in one["forms"].items()}
    assert one["speedup"]["converted"] == pytest.approx(times["dense"] / times["converted"])
    assert done.data["unit"] == "rows"
    assert done.data["memory"]["out"]["dense"]["run"] > 0
    assert (tmp_path / "p.svg").read_text("utf-8").startswith("<?xml")
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == ["converted.onnx", "dense.onnx"]


@pytest.mark.slow
@pytest.mark.usefixtures("converted")
def test_the_dense_model_is_the_recorded_one_or_named(moeify: Run, tmp_path: Path) -> None:
    state = torch.load(tmp_path / "model.pt")
    torch.save({name: value + 1 for name, value in state.items()}, tmp_path / "model.pt")
    changed = moeify(f"bench out {TINY} {SHORT}")
    assert (changed.code, changed.out) == (1, "")
    expected = f"{tmp_path / 'model.pt'}: is not what the folder was made from (sha256): give the dense model (--dense, dense=)"
    assert changed.err == f"moeify: error: {expected}\n"
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "model.pt", tmp_path / "elsewhere" / "other.pt")
    gone = moeify(f"bench out {TINY} {SHORT}")
    assert gone.err == (
        "moeify: error: the model that it was made from, model.pt, is not beside it: give the dense model (--dense, dense=)\n"
    )
    named = moeify(f"bench out --dense elsewhere/other.pt --tokens 2 {TINY} {SHORT}")
    assert named.code == 0
    lines = named.out.splitlines()
    assert lines[-1] == "note: elsewhere/other.pt is not what out was made from (sha256): the dense model is another one"
    assert lines[0].startswith("fp32, MoE layers by ")


def test_layers_of_a_shape_are_timed(moeify: Run) -> None:
    shape = "hidden=16,neurons=32,experts=4,top_k=1"
    done = moeify(f"bench --shape {shape} --shape {shape},gated=true,activation=silu --tokens 1,4 {SHORT} --json")
    assert (done.code, done.err) == (0, "")
    assert [(cell["subject"], cell["tokens"]) for cell in done.data["cells"][:2]] == [(shape, 1), (shape, 4)]
    assert done.data["of_a_layer"]
    for cell in done.data["cells"]:
        assert set(cell["forms"]) == {"dense MatMul", "dense Gemm", "converted"}
    assert done.data["cells"][0]["forms"]["dense Gemm"]["weight_bytes"] == 4 * 2 * 16 * 32
    assert done.data["cells"][0]["forms"]["converted"]["weight_bytes"] == 4 * (2 * 16 * 8 + 4 * 16)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bench", "bench takes either a converted folder or --shape: give one of them"),
        ("bench out --shape hidden=1", "bench takes either a converted folder or --shape: give one of them"),
        ("bench out --precision fp7", "precision is 'fp7': files are exported in fp32, fp16, int8, int4; choose that"),
        ("bench out --tokens 1,x", "--tokens is '1,x': give whole numbers with commas between them"),
        ("bench out --plot p.pdf", "p.pdf: plots are written as .png or .svg; give such a name"),
        (
            "bench --shape hidden=32,neurons=48,experts=8,top_k=2 --precision fp7",
            "precision is 'fp7': files are exported in fp32, fp16, int8, int4; choose that",
        ),
        ("bench --shape hidden=1 --dense d", "--dense is for a converted folder, not for --shape: leave it out"),
    ],
)
def test_wrong_use_is_said_before_anything_is_read(line: str, message: str, moeify: Run) -> None:
    done = moeify(line)
    assert (done.code, done.out, done.err) == (2, "", f"moeify: error: {message}\n")
