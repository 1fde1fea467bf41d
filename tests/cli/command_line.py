"""The command as tests call it: in this process, or as a process of its own."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moeify.cli import main

TESTS = Path(__file__).parent.parent


@dataclass(frozen=True)
class Outcome:
    """What a run of the command left."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """Standard output, which must be one JSON object."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


@dataclass(frozen=True)
class Command:
    """Runs the command in this process."""

    capture: pytest.CaptureFixture[str]

    def __call__(self, line: str) -> Outcome:
        self.capture.readouterr()
        code = main(shlex.split(line))
        out, err = self.capture.readouterr()
        return Outcome(code, out, err)


def arguments(line: str) -> list[str]:
    return [sys.executable, "-m", "moeify", *shlex.split(line)]


def environment(**more: str) -> dict[str, str]:
    """For a process of its own, in which tests/ can be imported."""
    paths = (TESTS.parent, TESTS.parent / "passes", TESTS)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1", **more}


def process(line: str, folder: Path, **options: Any) -> Outcome:
    """Runs the command as a process of its own in that folder."""
    done = subprocess.run(
        arguments(line), cwd=folder, env=environment(), capture_output=True, text=True, check=False, **options
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)
