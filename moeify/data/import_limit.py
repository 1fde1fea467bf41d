"""A bound on how long importing foreign code may take."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from moeify.errors import InputError, UsageError

#: The environment variable that sets the bound, in seconds; 0 takes it away.
VARIABLE = "MOEIFY_IMPORT_SECONDS"
DEFAULT_SECONDS = 300.0


class _OverdueError(BaseException):
    """No Exception, so that a module which swallows those does not swallow it."""


@contextmanager
def import_limit(what: str) -> Iterator[None]:
    """Ends the block after MOEIFY_IMPORT_SECONDS (default 300). what: who imports what, for the message.

    Raises InputError where the time is over, UsageError where the variable is no number. In other threads than the main one,
    and where there is no SIGALRM, nothing is bounded.
    """
    seconds = _seconds()
    here = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    if not seconds or not here:
        yield
        return
    began = time.monotonic()
    handler = signal.signal(signal.SIGALRM, _end)
    # Once a second from then on: code that swallows everything is told again.
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    except _OverdueError as error:
        raise InputError(
            f"{what} took longer than {seconds:g} s and was ended; mend the module, or allow more seconds with {VARIABLE}"
        ) from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:  # somebody else's alarm goes on
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-3), interval)


def _end(number: int, frame: FrameType | None) -> None:
    raise _OverdueError


def _seconds() -> float:
    text = os.environ.get(VARIABLE, "")
    try:
        seconds = float(text or DEFAULT_SECONDS)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 1e6:
        raise UsageError(f"{VARIABLE} is {text!r}: give a number of seconds from 0 (no limit) to 1000000")
    return seconds
