"""The files of a sweep and of a benchmark, as rows that a page can show: read without trusting a field."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeify.errors import InputError, OutputError
from moeify.export.manifest_fields import Fields
from moeify.measure.rows_file import RowsFile
from moeify.measure.sweep_picture import loss_of

ROWS = "rows.jsonl"


@dataclass(frozen=True)
class SweepPoint:
    """A recipe at a budget. asked, active: fractions of the FFNs' weights, as asked for and as measured; loss: perplexity /
    dense where `ratio`, else the relative error of the model's output. error: why there is no figure."""

    recipe: str
    asked: float
    active: float | None
    loss: float | None
    ratio: bool
    void: bool
    perplexity: float | None = None
    error: str = ""


@dataclass(frozen=True)
class SpeedRow:
    """One run of a benchmark. Times are milliseconds: median, and quartiles. speedup: dense / converted; roof: if both took no
    longer than the machine must."""

    subject: str
    what: str
    threads: int
    dense: tuple[float, float, float]
    converted: tuple[float, float, float]
    speedup: float
    roof: float


@dataclass(frozen=True)
class Speed:
    """A benchmark: where and how it was made, and its rows."""

    machine: str
    precision: str
    kernel: str
    rows: tuple[SpeedRow, ...]


def read_sweep(path: Path) -> tuple[SweepPoint, ...]:
    """The rows of a sweep's folder or of its rows.jsonl. Raises InputError for what is neither."""
    file = path / ROWS if path.is_dir() else path
    hint = "give the folder that moeify sweep wrote, or its rows.jsonl"
    if not file.is_file():
        raise InputError(f"{file}: no such file; {hint}")
    try:
        rows = RowsFile(file).rows.values()
    except OutputError as error:
        raise InputError(f"{file}: is no file of a sweep; {hint}") from error
    if not rows:
        raise InputError(f"{file}: holds no row yet; {hint}")
    return tuple(_point(Fields.of(dict(row), str(file))) for row in rows)


def _point(row: Fields) -> SweepPoint:
    name, asked = row.text("recipe"), row.number("active")
    if "error" in row.data:
        return SweepPoint(name, asked, None, None, False, False, error=row.text("error"))
    for field in ("ratio", "relative_error", "perplexity"):
        if row.data.get(field) is not None:
            row.number(field)
    return SweepPoint(
        recipe=name,
        asked=asked,
        active=row.number("active_fraction"),
        loss=loss_of(row.data),
        ratio=row.data.get("ratio") is not None,
        void=row.boolean("void"),
        perplexity=row.data.get("perplexity"),
    )


def read_bench(path: Path) -> Speed:
    """The JSON of a benchmark. Raises InputError for anything else: which field is wrong."""
    hint = "write it by moeify bench OUT --json > bench.json"
    try:
        data: Any = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; {hint}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON; {hint}") from error
    if not isinstance(data, dict) or "cells" not in data:
        raise InputError(f"{path}: is no benchmark; {hint}")
    bench = Fields.of(data, str(path))
    unit = bench.text("unit")
    rows = tuple(row for cell in bench.tables("cells") for row in _speed_rows(cell, unit))
    return Speed(bench.table("machine").text("name"), bench.text("precision"), bench.text("kernel"), rows)


def _speed_rows(cell: Fields, unit: str) -> list[SpeedRow]:
    forms, speedups = cell.table("forms"), cell.table("speedup")
    dense = [form for name in forms.data if (form := forms.table(name)).boolean("dense")]
    if not dense:
        raise InputError(f"{cell.where}: has no dense form; write the file again by moeify bench")
    fastest = min((_times(form) for form in dense), key=lambda times: times[1])
    tokens = cell.integer("tokens")
    what = (
        f"{tokens} {unit.removesuffix('s') if tokens == 1 else unit}"
        if cell.is_null("past")
        else f"step after {cell.integer('past')}"
    )
    subject, several = cell.text("subject"), len(speedups.data) > 1
    return [
        SpeedRow(
            subject=f"{subject}, {name}" if several else subject,
            what=what,
            threads=cell.integer("threads"),
            dense=fastest,
            converted=_times(forms.table(name)),
            speedup=speedups.number(name),
            roof=cell.number("roof_speedup"),
        )
        for name in speedups.data
    ]


def _times(form: Fields) -> tuple[float, float, float]:
    wall = form.table("wall_ms")
    return wall.number("lower"), wall.number("median"), wall.number("upper")
