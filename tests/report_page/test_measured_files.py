"""Files of a sweep and of a benchmark: read as they were written, refused by one line where they are something else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moeify.errors import InputError
from moeify.report_page.measured_files import SpeedRow, SweepPoint, read_bench, read_sweep
from moeify.speed.workload import Place
from speed.test_speed_report import cell
from speed.test_speed_report import report as speed_report

ROW = {"recipe": "best", "active": 0.5, "digest": "a", "active_fraction": 0.49, "void": False, "ratio": 2.0, "perplexity": 40.0}


def sweep_file(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_rows_of_a_sweep(tmp_path: Path) -> None:
    error = {"recipe": "thor", "active": 0.5, "digest": "b", "error": "cannot"}
    path = sweep_file(tmp_path, ROW, ROW | {"digest": "c", "ratio": None, "perplexity": None, "relative_error": 0.3}, error)
    expected = (
        SweepPoint("best", 0.5, 0.49, 2.0, True, False, 40.0),
        SweepPoint("best", 0.5, 0.49, 0.3, False, False),
        SweepPoint("thor", 0.5, None, None, False, False, error="cannot"),
    )
    assert read_sweep(path) == read_sweep(tmp_path) == expected


@pytest.mark.parametrize(
    ("caption", "write", "message"),
    [
        (
            "nothing",
            lambda folder: None,
            "rows.jsonl: no such file; give the folder that moeify sweep wrote, or its rows.jsonl",
        ),
        ("no row", lambda folder: sweep_file(folder), "rows.jsonl: holds no row yet; give the folder"),
        (
            "another file",
            lambda folder: (folder / "rows.jsonl").write_text("a,b\n1,2\n"),
            "rows.jsonl: is no file of a sweep; ",
        ),
        ("a row without a recipe", lambda folder: sweep_file(folder, {"digest": "a"}), "rows.jsonl: field recipe is missing;"),
        (
            "a text for a number",
            lambda folder: sweep_file(folder, ROW | {"ratio": "<b>"}),
            "field ratio is a text, not a number;",
        ),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) and ":" not in value else "",
)
def test_what_is_no_sweep_is_refused(tmp_path: Path, caption: str, write: Callable[[Path], Any], message: str) -> None:
    write(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read_sweep(tmp_path)
    assert "\n" not in str(error.value)


def test_a_benchmark_as_it_was_written(tmp_path: Path) -> None:
    found = speed_report(cell(), cell(place=Place(1, 128)))
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(found.to_json()), "utf-8")
    speed = read_bench(path)
    assert (speed.machine, speed.precision, speed.kernel) == ("a machine", "fp32", "the native library")
    assert [row.what for row in speed.rows] == [f"{found.cells[0].place.tokens} tokens", "step after 128"]
    for row, of in zip(speed.rows, found.cells):
        walls = (of.forms[of.dense].wall, of.forms["converted"].wall)
        dense, other = ((1e3 * wall.lower, 1e3 * wall.median, 1e3 * wall.upper) for wall in walls)
        assert row == SpeedRow("it", row.what, 1, dense, other, of.speedup("converted"), of.roof)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "bench.json: is no JSON; write it by moeify bench OUT --json > bench.json"),
        ("[]", "bench.json: is no benchmark; write it by moeify bench OUT --json > bench.json"),
        ('{"cells": []}', "bench.json: field unit is missing; "),
        ('{"cells": [{}], "unit": "tokens"}', "bench.json: cells[0]: field forms is missing; "),
        ('{"cells": [{"forms": {}, "speedup": {}}], "unit": "tokens"}', "bench.json: cells[0]: has no dense form; "),
    ],
)
def test_what_is_no_benchmark_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bench.json").write_text(text, "utf-8")
    with pytest.raises(InputError, match=re.escape(message)):
        read_bench(tmp_path / "bench.json")
    with pytest.raises(InputError, match=re.escape("gone.json: cannot be read: No such file or directory; write it by")):
        read_bench(tmp_path / "gone.json")
