"""A file of measured rows, JSON a line, that a run which was ended early can go on with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moeify.errors import OutputError

Row = Mapping[str, Any]


class RowsFile:
    """Rows by their `digest`; the last of equal ones counts. A line that was cut off is forgotten."""

    def __init__(self, path: Path) -> None:
        """Reads what is there. Raises OutputError for a file that cannot be read or is none of ours."""
        self.path = path
        self.rows: dict[str, Row] = {}
        try:
            lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
        except (OSError, ValueError) as error:
            raise OutputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
        self._whole = 0
        for line in lines:
            row = _row(line)
            if row is None:
                if line is lines[-1] and not line.endswith("\n"):
                    break
                raise OutputError(f"{path}: holds a line that is no measured row; choose another output, or remove the file")
            self.rows[row["digest"]] = row
            self._whole += len(line.encode("utf-8"))

    def add(self, row: Row) -> None:
        """Writes the row; it is on disk when this returns. Raises OutputError where it cannot be written."""
        text = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            with self.path.open("r+b" if self.path.exists() else "wb") as file:
                file.truncate(self._whole)
                file.seek(self._whole)
                file.write(text.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror}") from error
        self._whole += len(text.encode("utf-8"))
        self.rows[row["digest"]] = row


def _row(line: str) -> Row | None:
    try:
        found = json.loads(line) if line.endswith("\n") else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("digest"), str) else None
