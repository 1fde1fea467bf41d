"""Timing with a clock that the test moves."""

from __future__ import annotations

import pytest

from moeify.errors import UsageError
from moeify.measure.timing import Timing, interleaved


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, *seconds: float) -> None:
        self.now += seconds[self.order.count(name) % len(seconds)]
        self.order.append(name)


def test_rounds_take_turns_and_medians_are_taken() -> None:
    clock = Clock()
    calls = {"a": lambda: clock.work("a", 9, 1, 2, 30), "b": lambda: clock.work("b", 9, 4, 4, 4)}
    found = interleaved(calls, rounds=3, clock=clock)
    assert found == {"a": Timing(2, 1, 30, 3), "b": Timing(4, 4, 4, 3)}
    assert "".join(clock.order) == "ab" + "ab" + "ba" + "ab"


def test_time_runs_out_between_rounds() -> None:
    clock = Clock()
    found = interleaved({"a": lambda: clock.work("a", 1)}, warmup=0, rounds=100, seconds=2.5, clock=clock)
    assert found["a"].rounds == 3
    assert interleaved({"a": lambda: clock.work("a", 1)}, seconds=0, clock=clock)["a"].rounds == 1


@pytest.mark.parametrize(("calls", "rounds"), [({}, 3), ({"a": list}, 0)], ids=["no call", "no round"])
def test_nothing_to_time(calls: dict[str, type[list[int]]], rounds: int) -> None:
    with pytest.raises(UsageError, match="timing needs calls and at least one round"):
        interleaved(calls, rounds=rounds)
