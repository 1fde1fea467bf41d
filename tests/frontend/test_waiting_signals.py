"""Signals that come while a model is traced."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest
import torch
from torch import nn

from moeify.frontend.trace_export import exported
from moeify.frontend.waiting_signals import signals_wait

NUMBERS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture
def come() -> Iterator[list[int]]:
    """The signals that were handled: here that is to be noted."""
    noted: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: noted.append(number)) for number in NUMBERS}
    yield noted
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the tests run in the background of a shell, which turns it off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_waits_and_the_second_does_not(number: signal.Signals, come: list[int]) -> None:
    with signals_wait():
        os.kill(os.getpid(), number)
        assert come == []
    assert come == [number]
    with signals_wait():
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert come == [number, number]
    assert come == [number, number, number]
    os.kill(os.getpid(), number)
    assert len(come) == 4


def test_what_failed_meanwhile_is_kept_as_the_context(interrupts: None) -> None:
    def fail() -> None:
        with signals_wait():
            os.kill(os.getpid(), signal.SIGINT)
            raise ValueError("its own")

    with pytest.raises(KeyboardInterrupt) as caught:
        fail()
    assert str(caught.value.__context__) == "its own"


def test_what_no_function_handles_stays_as_it_is(come: list[int]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with signals_wait():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        assert callable(signal.getsignal(signal.SIGINT))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_other_threads_change_no_handlers(come: list[int]) -> None:
    before, inside = signal.getsignal(signal.SIGINT), []

    def look() -> None:
        with signals_wait():
            inside.append(signal.getsignal(signal.SIGINT))

    thread = Thread(target=look)
    thread.start()
    thread.join()
    assert inside == [before]


def test_an_interrupt_inside_the_tracer_is_an_interrupt(interrupts: None) -> None:
    class Interrupted(nn.Module):
        def forward(self, x: Any) -> Any:
            os.kill(os.getpid(), signal.SIGINT)
            return x + 1

    with pytest.raises(KeyboardInterrupt):
        exported(Interrupted(), (torch.zeros(2, 3),), free=True)
