from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command_line import Command, Outcome
from cli.small_files import write_files


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where files are kept that were written once."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def moeify(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], Outcome]:
    """Runs the command in tmp_path; files of the table that the line names are written there first."""
    monkeypatch.chdir(tmp_path)
    command = Command(capsys)

    def run(line: str) -> Outcome:
        write_files(re.split(r"[\s=/]+", line), tmp_path, kept)
        return command(line)

    return run
