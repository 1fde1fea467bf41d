"""Ctrl-C waits for the tracer.

Raised inside of torch's tracing, it becomes an error of torch's, to which fixed sizes are an answer; or it leaves torch's modes
half set, which ends the process (c10::Error from an extension of the dispatcher).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def signals_wait() -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM waits for the block to end, and is handled then; a second is handled at once.

    Signals that no Python function handles, and threads other than the main one, are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[int, Handler] = {}
    waiting: list[tuple[int, FrameType | None]] = []

    def wait(number: int, frame: FrameType | None) -> None:
        waiting.append((number, frame))
        if len(waiting) > 1:
            handlers[number](number, frame)

    for number in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(number)
        if callable(handler):
            handlers[number] = handler
            signal.signal(number, wait)
    try:
        yield
    finally:
        for handled, handler in handlers.items():
            signal.signal(handled, handler)
        for come, frame in waiting[:1]:
            handlers[come](come, frame)
