"""A conversion that is ended early, and gone on with: the same bytes as one that was let to end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import moeify
from cli.command_line import Outcome
from cli.tiny_models import TINY, batches, example, stack
from moeify import api
from moeify.errors import UsageError

Run = Callable[[str], Outcome]

DEEP = "--factory cli.tiny_models:deep_stack --example cli.tiny_models:example"
MARKERS = f"convert deep.pt -o out {DEEP} --recipe markers --calibrate cli.tiny_models:batches --experts 4 --top-k 2"
CONVERSIONS = {
    "by the weights alone": f"convert deep.pt -o out {DEEP} --experts 4",
    "on the converted prefix": MARKERS,
    "on the dense prefix": f"{MARKERS} --set each-layer.prefix=dense",
    "some layers": f"{MARKERS} --layers every:2",
    "on two sources": f"{MARKERS} --calibrate cli.tiny_models:batches",
    "with ONNX": f"{MARKERS} --export onnx",
    "copies with new weights": f"convert deep.pt -o out {DEEP} --recipe drop-upcycle --experts 3",
    "aligned": f"{MARKERS} --align steps=40,tokens=8,learning_rate=0.05",
    "experts on a frozen core": f"convert deep.pt -o out {DEEP} --recipe lora-experts --experts 3",
    "stochastic experts": f"convert deep.pt -o out {DEEP} --recipe thor --experts 3",
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stop_at(layer: int, monkeypatch: pytest.MonkeyPatch, at: str = "converting layers") -> None:
    """Ctrl-C, as the conversion comes to its `layer`-th layer (from 0), or to such a number of something else."""
    convert = api.convert

    def stopped(*args: Any, **options: Any) -> Any:
        def progress(task: str, done: int, total: int | None) -> None:
            if (task, done) == (at, layer):
                raise KeyboardInterrupt

        return convert(*args, **{**options, "progress": progress})

    monkeypatch.setattr(api, "convert", stopped)


@pytest.mark.sampled
@pytest.mark.parametrize("caption", CONVERSIONS)
def test_a_resumed_conversion_gives_the_same_bytes(
    caption: str, moeify: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = CONVERSIONS[caption]
    assert moeify(line).code == 0
    (tmp_path / "out").rename(tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        ended = moeify(line)
    said = "moeify: interrupted; 2 finished layers are kept: the same command with --resume goes on from there\n"
    assert (ended.code, ended.err) == (130, said)
    assert sorted(os.listdir(tmp_path)) == [".out.moeify-journal", "deep.pt", "unbroken"]
    done = moeify(f"{line} --resume")
    assert done.code == 0
    assert "2 layers were taken over" in done.err
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")
    assert sorted(os.listdir(tmp_path)) == ["deep.pt", "out", "unbroken"]


def test_a_conversion_may_be_ended_again_and_again(moeify: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in (1, 3, 4):
        with monkeypatch.context() as patch:
            stop_at(layer, patch)
            assert f"{layer} finished layers are kept" in moeify(f"{MARKERS} --resume").err
    assert "4 layers were taken over" in moeify(f"{MARKERS} --resume").err


@pytest.mark.slow
def test_an_alignment_goes_on_where_it_was_ended(moeify: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = CONVERSIONS["aligned"]
    assert moeify(line).code == 0
    (tmp_path / "out").rename(tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        stop_at(70, patch, "aligning")
        assert moeify(line).code == 130
    assert (tmp_path / ".out.moeify-journal" / "aligned.safetensors").exists()
    assert moeify(f"{line} --resume").code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


CHANGED = [
    ("another recipe", "--recipe markers", "--recipe random", "recipe and calibration data"),
    ("another option", "--top-k 2", "--top-k 1", "recipe"),
    ("another seed", "--top-k 2", "--top-k 2 --seed 3", "recipe"),
    ("another alignment", "--top-k 2", "--top-k 2 --align steps=4", "alignment and calibration data"),
    ("another dtype", "--top-k 2", "--top-k 2 --dtype bf16", "example and number type and device"),
    ("other data", "cli.tiny_models:batches", "rows.pt", "calibration data"),
    ("more data", "--top-k 2", "--top-k 2 --calibrate rows.pt", "calibration data"),
    ("another model", "convert deep.pt", "convert shallow.pt", "model"),
]


@pytest.mark.sampled
@pytest.mark.parametrize(("before", "after", "named"), [c[1:] for c in CHANGED], ids=[c[0] for c in CHANGED])
def test_another_conversion_is_not_gone_on_with(
    before: str, after: str, named: str, moeify: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({name: value + 1 for name, value in torch.load(deep_weights(moeify, tmp_path)).items()}, tmp_path / "shallow.pt")
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        moeify(MARKERS)
    done = moeify(f"{MARKERS.replace(before, after)} --resume")
    assert (done.code, done.out) == (1, "")
    assert f"(its {named} differ); give the same options again, or leave out --resume" in done.err
    assert "2 layers were taken over" in moeify(f"{MARKERS} --resume").err


def deep_weights(moeify: Run, folder: Path) -> Path:
    """deep.pt, written by naming it."""
    moeify("inspect deep.pt")
    return folder / "deep.pt"


def test_without_resume_it_begins_anew(moeify: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        moeify(MARKERS)
    done = moeify(MARKERS)
    assert (done.code, "taken over" in done.err) == (0, False)
    assert sorted(os.listdir(tmp_path)) == ["deep.pt", "out"]


def test_where_nothing_was_begun_resume_says_so(moeify: Run) -> None:
    done = moeify(f"convert model.pt -o out {TINY} --experts 4 --resume")
    assert done.code == 0
    assert "moeify: note: nothing to resume: the conversion was begun anew\n" in done.err


def test_a_model_in_memory_cannot_be_gone_on_with(tmp_path: Path) -> None:
    for source, output in ((stack(), tmp_path / "out"), ("model.pt", None)):
        with pytest.raises(UsageError, match=r"resume: .*model on disk to a folder"):
            moeify.convert(source, output, example=example(), calibrate=batches, experts=4, resume=True)
