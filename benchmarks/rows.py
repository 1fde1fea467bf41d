"""A row of results: printed, and kept in results.jsonl if asked for."""

from __future__ import annotations

import json
import os
import platform
from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import moeify

RESULTS = Path(__file__).parent / "results.jsonl"


def arguments(doc: str | None) -> ArgumentParser:
    """A parser with the option that all scripts have."""
    parser = ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"append the row to {RESULTS.name}")
    return parser


def machine() -> dict[str, Any]:
    """What every row says of where it was made."""
    versions = {"moeify": moeify.__version__, "torch": torch.__version__}
    return {**versions, "cores": os.cpu_count(), "machine": platform.machine()}


def emit(rows: Iterable[dict[str, Any]], results: Path, write: bool) -> None:
    """Prints each row as a line as soon as it is there; write: and appends it to that file."""
    for row in rows:
        line = json.dumps(row)
        print(line, flush=True)
        if write:
            with results.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def show(row: dict[str, Any], write: bool, results: Path = RESULTS) -> None:
    """Prints the row; write: and appends it to the results."""
    print(json.dumps(row, indent=1))
    if write:
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
