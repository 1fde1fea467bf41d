"""What a benchmark found: data first, a text and a plot from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moeify.measure.timing import Spread
from moeify.speed.cell import Cell
from moeify.speed.machine import Machine, Roof
from moeify.speed.resident import Resident


@dataclass(frozen=True)
class SpeedReport:
    """precision: of the weights of all forms. kernel: who ran the MoE layers, the native library or their function bodies.
    unit: what the file was given more or fewer of. memory: by subject and form. layers: where it is not None, times, bytes and
    flops are of one layer of a stack. notes: what the reader should know.
    """

    precision: str
    kernel: str
    unit: str
    machine: Machine
    roofs: tuple[Roof, ...]
    cells: tuple[Cell, ...]
    memory: Mapping[str, Mapping[str, Resident]]
    of_a_layer: bool = False
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data. Times are milliseconds, the rest bytes, flops and their rates a second."""
        return {
            "precision": self.precision,
            "kernel": self.kernel,
            "unit": self.unit,
            "of_a_layer": self.of_a_layer,
            "machine": asdict(self.machine),
            "roofs": [asdict(roof) for roof in self.roofs],
            "cells": [cell.to_json() for cell in self.cells],
            "memory": {
                subject: {name: asdict(resident) for name, resident in forms.items()} for subject, forms in self.memory.items()
            },
            "notes": list(self.notes),
        }

    def plot(self, path: Path) -> Path:
        """Times and speed-ups over tokens as a picture, .png or .svg (docs/benchmarking.md).

        Raises UsageError for another suffix, MissingExtraError without matplotlib.
        """
        from moeify.speed.plot import plot

        return plot(self, path)

    @property
    def subjects(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.subject for cell in self.cells))

    def of(self, subject: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.subject == subject]

    def time_table(self, subject: str) -> list[tuple[str, ...]]:
        """A line for every cell and converted form, the header first."""
        head = (self.unit, "threads", "dense, ms", "converted, ms", "dense / converted", "by CPU time", "roof")
        return [head, *(_times(cell, name) for cell in self.of(subject) for name in cell.converted)]

    def roof_table(self, subject: str) -> list[tuple[str, ...]]:
        """A line for every cell and form: what it had to do, and how near it came to what the machine can."""
        head = (self.unit, "threads", "form", "MB of weights", "GFLOP", "of the bandwidth", "of the flop rate")
        return [head, *(_work(cell, name) for cell in self.of(subject) for name in (cell.dense, *cell.converted))]

    def memory_table(self, subject: str) -> list[tuple[str, ...]]:
        head = ("form", "MB in memory, loaded", "after a run")
        return [head, *((name, _mega(r.loaded), _mega(r.run)) for name, r in self.memory[subject].items())]

    def __str__(self) -> str:
        roofs = "; ".join(
            f"{roof.threads} {'thread' if roof.threads == 1 else 'threads'}: "
            f"{roof.bandwidth / 1e9:.1f} GB/s, {roof.rate / 1e9:.0f} GFLOP/s"
            for roof in self.roofs
        )
        cache = f"{self.machine.cache / 2**20:.0f} MB of cache"
        head = [
            f"{self.precision}, MoE layers by {self.kernel}" + (", figures of one layer of a stack" if self.of_a_layer else ""),
            f"{self.machine.name}, {self.machine.cores} cores, {cache}; {roofs}",
        ]
        parts = ["\n".join(head)]
        for subject in self.subjects:
            tables = (self.time_table(subject), self.roof_table(subject), self.memory_table(subject))
            parts += [subject, *map(aligned, tables)]
        return "\n\n".join([*parts, *(f"note: {note}" for note in self.notes)])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table in which all but the first column are set right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ((row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))) for row in rows)
    return "\n".join("  ".join(line) for line in lines)


def _times(cell: Cell, name: str) -> tuple[str, ...]:
    return (
        str(cell.place), str(cell.threads), _spread(cell.forms[cell.dense].wall), _spread(cell.forms[name].wall),
        f"{cell.speedup(name):.2f}", f"{cell.cpu_speedup(name):.2f}", f"{cell.roof:.2f}",
    )  # fmt: skip


def _work(cell: Cell, name: str) -> tuple[str, ...]:
    form = cell.forms[name]
    return (
        str(cell.place), str(cell.threads), name, _mega(form.bytes), f"{form.work.flops / 1e9:.3g}",
        f"{form.bandwidth:.0%}", f"{form.rate:.0%}",
    )  # fmt: skip


def _spread(spread: Spread) -> str:
    return f"{_digits(spread.median)} ({_digits(spread.lower)} - {_digits(spread.upper)})"


def _digits(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def _mega(size: float) -> str:
    return f"{size / 1e6:.1f}" if size < 1e9 else f"{size / 1e6:.0f}"
