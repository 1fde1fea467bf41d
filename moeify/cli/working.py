"""What surrounds work of the api: third parties are kept off the screen, progress is shown."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO

from moeify.cli.progress import Show, bars, lines
from moeify.cli.screen import Screen
from moeify.cli.signals import end_if_signalled

_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@contextmanager
def working(screen: Screen) -> Iterator[Show]:
    """Gives the function that shows progress. Meanwhile warnings, logs and prints of other packages go nowhere, or, but for
    warnings, to standard error with --verbose."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    foreign: TextIO = screen.err if screen.verbose else _Nowhere()
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(redirect_stdout(foreign))
        stack.enter_context(redirect_stderr(foreign))
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.WARNING if screen.verbose else logging.CRITICAL)
        if screen.quiet:
            yield _ending(_silent)
        elif screen.err.isatty() and not screen.verbose:
            yield _ending(stack.enter_context(bars(screen.err)))
        else:
            yield _ending(lines(screen))


def _ending(show: Show) -> Show:
    """`show`, at whose calls the run ends if a signal was swallowed before."""

    def report(task: str, done: int, total: int | None) -> None:
        end_if_signalled()
        show(task, done, total)

    return report


class _Nowhere(io.StringIO):
    """Takes all text and keeps none."""

    def write(self, text: str, /) -> int:
        return len(text)


def _silent(task: str, done: int, total: int | None) -> None:
    """Shows nothing."""
