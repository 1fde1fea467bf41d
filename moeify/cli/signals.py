"""Ctrl-C and SIGTERM end a run, also where someone else's code swallows what they raise.

Torch does at times: it makes an error of its own of it, and who asked torch may have an answer to that (fixed sizes where
free ones could not be traced). So signals are noted too, and the run ends at the next step that it reports.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TerminatedError(KeyboardInterrupt):
    """SIGTERM: ends the run just as Ctrl-C does, so that nothing half-written stays."""


#: What came since the run began. One for the process, as its signal handlers are.
_come: list[KeyboardInterrupt] = []


@contextmanager
def signals_raise() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM raise and are noted; off the main thread, which signals never reach, nothing changes."""
    _come.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def last_signal() -> KeyboardInterrupt | None:
    """What the last signal of this run raised, if one came."""
    return _come[-1] if _come else None


def end_if_signalled() -> None:
    """Raises what a signal raised that was swallowed."""
    if _come:
        raise _come[-1]


def _end(number: int, frame: FrameType | None) -> None:
    _come.append(KeyboardInterrupt() if number == signal.SIGINT else TerminatedError())
    raise _come[-1]
