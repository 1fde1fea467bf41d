"""What a command prints, and where: results on standard output, notes and errors on standard error."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TextIO

from moeify.errors import OutputError, UsageError, one_line

# Wide enough that no table is folded where no one looks at a terminal.
_UNFOLDED = 4000


@dataclass(frozen=True)
class Screen:
    """The two streams as they were when the command began, and how much is wanted on them.

    Raises UsageError for --quiet together with --verbose.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    out: TextIO = field(default_factory=lambda: sys.stdout, repr=False)
    err: TextIO = field(default_factory=lambda: sys.stderr, repr=False)

    def __post_init__(self) -> None:
        if self.quiet and self.verbose:
            raise UsageError("--quiet and --verbose contradict each other: give one of them")

    def data(self, value: Mapping[str, Any]) -> None:
        """One JSON object on standard output; numbers that are not finite become null."""
        write(self.out, json.dumps(_finite(value), indent=2, allow_nan=False))

    def line(self, text: str = "") -> None:
        """A line of the result; nothing with --quiet."""
        if not self.quiet:
            write(self.out, text)

    def note(self, text: str) -> None:
        """A line beside the result, on standard error; nothing with --quiet."""
        if not self.quiet:
            write(self.err, f"moeify: note: {one_line(text)}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table of the result; columns of numbers are set right. Nothing with --quiet."""
        if not self.quiet and rows:
            write(self.out, _table_text(columns, rows, self.out))


def write(stream: TextIO, text: str) -> None:
    """A line on a stream, now. Raises BrokenPipeError where no one reads it, OutputError where it cannot be written."""
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        forget(stream)
        raise OutputError(f"the result cannot be printed: {error.strerror}") from error


def forget(stream: TextIO) -> None:
    """Lets what nobody takes, and Python would flush at its end, go into nothing."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def cell(value: Any) -> str:
    """A value as tables show it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={cell(v)}" for key, v in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(cell, value))
    return one_line(str(value))


def percent(fraction: float) -> str:
    """A fraction as people read it."""
    return f"{fraction:.1%}"


def _table_text(columns: Sequence[str], rows: Sequence[Sequence[Any]], stream: TextIO) -> str:
    """Fitted to a terminal by folding sentences; what is one word is never cut, and off a terminal nothing is."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        numbers = all(isinstance(row[index], int | float | None) for row in rows)
        sentences = any(" " in cell(row[index]) for row in rows)
        table.add_column(name, justify="right" if numbers else "left", no_wrap=not sentences)
    for row in rows:
        table.add_row(*map(cell, row))
    terminal, text = stream.isatty(), io.StringIO()
    console = Console(
        file=text, width=_UNFOLDED, force_terminal=terminal, markup=False, highlight=False, emoji=False
    )  # fmt: skip
    if terminal:
        console.width = max(Console(file=stream).width, console.measure(table).minimum)
    console.print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(v) for key, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value
