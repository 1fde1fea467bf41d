"""Where a result cannot be written: one line that names the place, and nothing left there, whoever runs it (root too)."""

from __future__ import annotations

import errno
import os
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.command_line import Outcome
from cli.tiny_models import TINY
from moeify.export import folder_weights

Run = Callable[[str], Outcome]

CONVERT = f"convert model.pt {TINY} --experts 4"

#: caption, the output, what stands in its way
PLACES: list[tuple[str, str, Callable[[Path], Any]]] = [
    ("under a file", "file/out", lambda p: (p / "file").touch()),
    ("far under a file", "file/a/b/out", lambda p: (p / "file").touch()),
    ("under a link to nowhere", "link/out", lambda p: (p / "link").symlink_to("/dev/null/none")),
    ("a name that is too long", "x" * 300, lambda p: None),
    ("a device", "/dev/null", lambda p: None),
    ("a file system of the kernel", "/proc/1/out", lambda p: None),
    ("inside the model", "model.pt/out", lambda p: None),
]


@pytest.mark.parametrize("command", [CONVERT + " -o", f"export moe {TINY} -o"], ids=["convert", "export"])
@pytest.mark.parametrize(("place", "prepare"), [p[1:] for p in PLACES], ids=[p[0] for p in PLACES])
def test_a_place_that_cannot_be_written_is_named(
    place: str, prepare: Callable[[Path], Any], command: str, moeify: Run, tmp_path: Path
) -> None:
    if "export" in command:
        assert moeify(f"{CONVERT} -o moe --quiet").code == 0
    prepare(tmp_path)
    before = {path.name for path in tmp_path.iterdir()} | {"model.pt"}
    done = moeify(f"{command} {place}")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1), done
    assert done.err.startswith(f"moeify: error: {place}: ")
    assert {path.name for path in tmp_path.iterdir()} == before


def failing(number: int) -> Callable[..., Any]:
    def fail(*args: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def left_by(done: Outcome) -> list[str]:
    """What stands there after a failure: finished layers, where the message says that they are kept, and nothing else."""
    return [".out.moeify-journal"] * ("are kept: the same command with --resume" in done.err) + ["model.pt"]


#: caption, what fails, where it is looked up
STEPS: list[tuple[str, object, str]] = [
    ("a folder is made", pathlib.Path, "mkdir"),
    ("weights are written", folder_weights, "write_safetensors"),
    ("a text is written", pathlib.Path, "write_text"),
    ("a text is flushed", os, "fsync"),
    ("the folder is put in place", pathlib.Path, "rename"),
    ("modes are set", pathlib.Path, "chmod"),
]


@pytest.mark.sampled
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize(("owner", "name"), [s[1:] for s in STEPS], ids=[s[0] for s in STEPS])
def test_a_disk_that_fails_at_any_step_leaves_no_result(
    owner: object, name: str, number: int, moeify: Run, tmp_path: Path
) -> None:
    assert moeify(f"{CONVERT} --dry-run --quiet").code == 0
    with pytest.MonkeyPatch.context() as while_failing:
        while_failing.setattr(owner, name, failing(number))
        done = moeify(f"{CONVERT} -o out")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1), done
    assert done.err.startswith("moeify: error: out: cannot be written: ")
    assert os.strerror(number) in done.err
    assert sorted(os.listdir(tmp_path)) == left_by(done)
    assert moeify(f"{CONVERT} -o out --quiet --resume").code == 0
    assert sorted(os.listdir(tmp_path)) == ["model.pt", "out"]


def test_a_disk_that_fills_while_an_old_result_is_replaced_leaves_the_old_one(moeify: Run, tmp_path: Path) -> None:
    assert moeify(f"{CONVERT} -o out --quiet").code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for owner, name in ((folder_weights, "write_safetensors"), (os, "fsync")):
        with pytest.MonkeyPatch.context() as while_failing:
            while_failing.setattr(owner, name, failing(errno.ENOSPC))
            assert moeify(f"{CONVERT} -o out --force --seed 5").code == 1
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert sorted(os.listdir(tmp_path)) == ["model.pt", "out"]
