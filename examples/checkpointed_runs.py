"""Runs of an experiment, each kept as a line of a JSON-lines file: what is done is never done again."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

import moeify

#: What a training came to: of each model that it gave, the figures by their names.
Results = dict[str, dict[str, float]]


class TimeIsUp(Exception):
    """The budget of minutes is spent."""


@dataclass(frozen=True)
class Budget:
    """So many minutes from its making on; None: no end."""

    minutes: float | None = None
    start: float = field(default_factory=time.monotonic)

    def check(self) -> None:
        """To be called in every step of training. Raises TimeIsUp."""
        if self.minutes is not None and time.monotonic() - self.start > 60 * self.minutes:
            raise TimeIsUp(f"{self.minutes:g} minutes are over")


@dataclass(frozen=True)
class Run:
    """One training: an arm, its learning rate, a seed; "tune": measured on validation data, "measure": on test data."""

    purpose: Literal["tune", "measure"]
    arm: str
    rate: float
    seed: int

    def __str__(self) -> str:
        return f"{self.purpose} {self.arm}, rate {self.rate:g}, seed {self.seed}"


class Runs:
    """The finished runs of one experiment in one setting. Rows of other experiments and settings in the file are left alone."""

    def __init__(self, path: Path, experiment: str, setting: Mapping[str, Any]) -> None:
        self.path = path
        self.key = {"experiment": experiment, "setting": json.loads(json.dumps(setting))}
        rows = (row for row in read_rows(path) if all(row.get(name) == value for name, value in self.key.items()))
        self.environment = environment()
        self.done: dict[Run, Results] = {Run(**row["run"]): row["results"] for row in rows}

    def result(self, run: Run, work: Callable[[Run], Results]) -> Results:
        """What the run found: read if it is done, else worked out and appended to the file."""
        if run not in self.done:
            print(f"{run}: ", end="", flush=True)
            start, processor = time.monotonic(), time.process_time()
            found = work(run)
            times = {"seconds": round(time.monotonic() - start, 1), "cpu_seconds": round(time.process_time() - processor, 1)}
            append_row(self.path, {**self.key, "run": asdict(run), "results": found, **times, **self.environment})
            self.done[run] = found
            print("; ".join(f"{model} {_shown(figures)}" for model, figures in found.items()), flush=True)
        return self.done[run]


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, none where there is no file; a line that a killed run left unfinished is passed over."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """A line of its own at the end of the file, which is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
        torn = file.read(1) not in (b"", b"\n")
        file.write((b"\n" if torn else b"") + json.dumps(row).encode() + b"\n")


def environment() -> dict[str, Any]:
    """Where a row was made."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    git = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    versions = {"moeify": moeify.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    place = {"machine": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return {**versions, **place, "commit": git.stdout.strip() or None}


def _shown(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.5g}" for name, value in figures.items())
