"""`moeify report` on a small model, from end to end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import moeify as package
from cli.command_line import Outcome
from cli.tiny_models import TINY
from onnx_files import dense_onnx
from report_page.pages import Reader

Run = Callable[[str], Outcome]

CONVERT = f"convert model.pt -o out {TINY} --experts 4 --recipe markers --top-k 2 --calibrate rows.pt -q"
REPORT = "report out --factory cli.tiny_models:stack --example cli.tiny_models:example"


@pytest.fixture
def out(moeify: Run, tmp_path: Path, kept: Path) -> Path:
    """A folder that was converted once for all tests, and what it was made from."""
    stored = kept / "report"
    if not stored.exists():
        done = moeify(CONVERT)
        assert done.code == 0, done
        shutil.copytree(tmp_path, stored)
    shutil.copytree(stored, tmp_path, dirs_exist_ok=True)
    return tmp_path / "out"


def test_a_folder_alone(moeify: Run, out: Path) -> None:
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    done = moeify("report out")
    assert done.code == 0, done
    assert done.out.splitlines()[-1] == "out/report.html"
    told = "load, entropy, co-activation, quality, speed"
    assert done.err == f"moeify: note: the page has nothing to show of {told}: it says how to get them\n"
    page = Reader((out / "report.html").read_text("utf-8"))
    assert "moeify report out --force --data TEXT" in " ".join(page.text.split())
    report = json.loads((out / "report.json").read_text("utf-8"))
    for layer in report["layers"]:
        assert f"{layer['nulls']['errors']['converted']:#.3g}" in page.text
    assert {path: path.read_bytes() for path in before} == before
    assert package.load(out, factory="cli.tiny_models:stack")  # the folder is as whole as before


def test_measured_on_data_beside_the_dense_model(moeify: Run, out: Path, tmp_path: Path) -> None:
    row = {"recipe": "best", "active": 0.5, "digest": "a", "active_fraction": 0.5, "void": False, "relative_error": 0.2}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    done = moeify(f"{REPORT} --data rows.pt --sweep rows.jsonl -o page.html --json")
    assert done.code == 0, done
    assert done.data == {"output": "page.html", "verdict": done.data["verdict"], "left_out": ["speed"]}
    page = Reader((tmp_path / "page.html").read_text("utf-8"))
    assert page.text.count("neurons, before") == page.text.count("neurons, by expert") == 2
    assert "on 64 tokens of rows.pt" in " ".join(page.text.split())
    again = moeify(f"{REPORT} --data rows.pt --sweep rows.jsonl -o other.html -q")
    assert again == Outcome(0, "", "")
    assert (tmp_path / "page.html").read_bytes() == (tmp_path / "other.html").read_bytes()


def test_without_the_dense_model_there_is_no_before(moeify: Run, out: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pt").rename(tmp_path / "elsewhere.pth")
    assert moeify(f"{REPORT} --data rows.pt").code == 0
    words = " ".join(Reader((out / "report.html").read_text("utf-8")).text.split())
    assert "neurons, before" not in words
    assert "How it was before is not shown: the model that it was made from, model.pt, is not beside it." in words


def test_a_folder_that_came_of_an_onnx_file(moeify: Run, tmp_path: Path) -> None:
    dense_onnx(tmp_path / "dense.onnx")
    assert moeify("convert dense.onnx -o out --experts 4 --top-k 2").code == 0
    example = torch.load(tmp_path / "out" / "source" / "example.pt", weights_only=True)
    torch.save({name: value.repeat_interleave(4, 0) for name, value in example.items()}, tmp_path / "given.pt")
    done = moeify("report out --data given.pt")
    assert done.code == 0, done
    words = " ".join(Reader((tmp_path / "out" / "report.html").read_text("utf-8")).text.split())
    assert "experts, busiest first" in words
    assert "How it was before is not shown: it is told of PyTorch models alone." in words


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("report a-file", 1, "a-file"),
        ("report empty-folder", 1, "empty-folder"),
        ("report out --dense model.pt", 2, "the dense model is compared on data, but there are none: give data too (--data)"),
        ("report out --tokens 1", 2, "'1' is not a whole number from 2"),
        (
            "report out --sweep empty-folder",
            1,
            "empty-folder/rows.jsonl: no such file; give the folder that moeify sweep wrote",
        ),
        ("report out --bench a-file", 1, "a-file: is no JSON; write it by moeify bench OUT --json > bench.json"),
        (f"{REPORT} --data empty.txt", 1, "empty.txt"),
        ("report out -o a-file", 1, "a-file: exists already; choose another name, or pass --force to replace it"),
    ],
)
def test_refusals(moeify: Run, out: Path, line: str, code: int, message: str) -> None:
    done = moeify(line)
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1)
    assert message in done.err
    assert not (out / "report.html").exists()
    assert not list(out.parent.glob(".*moeify-part*"))


def test_a_page_is_replaced_only_by_force(moeify: Run, out: Path) -> None:
    (out / "report.html").write_text("mine")
    assert "exists already" in moeify("report out").err
    assert (out / "report.html").read_text() == "mine"
    assert moeify("report out --force").code == 0
    assert (out / "report.html").read_text("utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("report.json", "{", "report.json: is no JSON; copy the folder again, or convert the model again"),
        ("report.json", "[]", "report.json: holds no table; "),
        ("recipe.toml", "= 1", "recipe.toml is not valid TOML"),
        ("moeify.safetensors", "text", "moeify.safetensors: cannot be read: "),
    ],
)
def test_damaged_folders(moeify: Run, out: Path, name: str, text: str, message: str) -> None:
    (out / name).write_text(text)
    done = moeify("report out")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert message in done.err
