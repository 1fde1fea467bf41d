"""`moeify sweep` on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command_line import Outcome
from cli.tiny_models import TINY

Run = Callable[[str], Outcome]
SWEEP = f"sweep model.pt {TINY} --calibrate rows.pt --evaluate rows.pt -o out --no-time"


def test_a_sweep_is_a_table_and_files(moeify: Run, tmp_path: Path) -> None:
    done = moeify(f"{SWEEP} --recipes static,thor --active 0.5")
    assert done.code == 0
    head, *rows, last = done.out.splitlines()
    assert head.split()[:3] == ["recipe", "asked", "active"]
    assert [row.split()[0] for row in rows] == ["static", "thor"]
    assert last == "2 rows: out/rows.jsonl and sweep.png and sweep.svg"
    assert "thor at 0.5: " in done.err
    again = moeify(f"{SWEEP} --recipes static,thor --active 0.5 --json")
    assert [row["recipe"] for row in again.data["rows"]] == ["static", "thor"]


def test_a_sweep_calibrates_on_several_sources(moeify: Run) -> None:
    line = f"{SWEEP} --recipes static --active 0.5"
    one, two = moeify(line), moeify(f"{line} --calibrate cli.tiny_models:batches")
    assert (one.code, two.code) == (0, 0)
    assert "measured by an earlier run" not in two.err
    assert "1 rows were measured by an earlier run" in moeify(line).err
    wrong = moeify(f"{line} --calibrate absent.txt")
    assert (wrong.code, wrong.err.count("\n")) == (1, 1)
    assert "absent.txt: no such file" in wrong.err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--active 0.5,1.5", "'1.5' is not a number above 0 and up to 1"),
        ("--active half", "'half' is not a number"),
        ("--recipes static,beest", "did you mean 'best'"),
        ("--tokens 1", "'1' is not a whole number from 2"),
    ],
)
def test_wrong_options_are_one_line(line: str, words: str, moeify: Run, tmp_path: Path) -> None:
    done = moeify(f"{SWEEP} {line}")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert words in done.err
    assert not (tmp_path / "out").exists()
