"""One run of the command: whatever happens becomes an exit code and, at most, one line on standard error."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

from moeify.cli.screen import Screen, forget, write
from moeify.cli.signals import TerminatedError, last_signal, signals_raise
from moeify.errors import MoeifyError, one_line


def run(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    screen = Screen(json="--json" in arguments, verbose="--verbose" in arguments or "-v" in arguments)
    try:
        with signals_raise():
            return _invoke(arguments)
    except BaseException as found:
        error = last_signal() or found  # what fails after a signal that was swallowed fails because of it
        if BrokenPipeError in (type(error), type(error.__context__)):  # rich makes a SystemExit of it
            forget(screen.out)
            return 1
        return _fail(error, screen)


def _invoke(arguments: list[str]) -> int:
    import typer

    from moeify.cli.app import make_app

    command = typer.main.get_command(make_app())
    try:
        with command.make_context("moeify", arguments) as context:
            command.invoke(context)
    except typer.Exit as error:
        return error.exit_code
    return 0


def _fail(error: BaseException, screen: Screen) -> int:
    """Prints the one line (and the JSON object) for an error; returns its exit code."""
    kind, code, message, line = _described(error)
    if screen.verbose and code == 1:
        traceback.print_exception(error, file=screen.err)
    with suppress(OSError, MoeifyError):
        if screen.json:
            screen.data({"error": {"type": kind, "message": message}})
    with suppress(OSError, MoeifyError):
        write(screen.err, line)
    try:
        screen.out.flush()
    except OSError:
        forget(screen.out)
    return code


def _described(error: BaseException) -> tuple[str, int, str, str]:
    """Type, exit code, message, and the line for standard error; the error's notes (PEP 678) come after its text."""
    kind, code, text, line = _plainly(error)
    notes = "".join(f"; {one_line(note)}" for note in getattr(error, "__notes__", ()))
    return kind, code, text + notes, line + notes


def _plainly(error: BaseException) -> tuple[str, int, str, str]:
    name, text = type(error).__name__, one_line(str(error))
    if isinstance(error, MoeifyError):
        return name, error.exit_code, text, f"moeify: error: {text}"
    if (formatted := getattr(error, "format_message", None)) is not None:  # what typer's parser raises
        text = one_line(formatted())
        return "UsageError", 2, text, f"moeify: error: {text}"
    if isinstance(error, TerminatedError):
        return "Terminated", 143, "terminated", "moeify: terminated"
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted", 130, "interrupted", "moeify: interrupted"
    if isinstance(error, MemoryError):
        text = "there is not enough memory; free some, or take less: --dtype bf16, fewer --tokens"
        return name, 1, text, f"moeify: error: {text}"
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        return name, 1, text, f"moeify: error: {one_line(text)}"
    named = f"{name}: {text}" if text else name
    return name, 1, text or name, f"moeify: internal error: {named}; run again with --verbose for the traceback"
