"""Timing with clocks that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from moeify.errors import UsageError
from moeify.measure.timing import Spread, Timing, interleaved


class Clock:
    """CPU time runs at half the pace of the wall's."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []
        self.seen: list[int] = []

    def wall(self) -> float:
        return self.now

    def cpu(self) -> float:
        return self.now / 2

    def work(self, name: str, *seconds: float) -> Callable[[int], None]:
        def call(x: int) -> None:
            self.now += seconds[self.order.count(name) % len(seconds)]
            self.order.append(name)
            self.seen.append(x)

        return call

    def fresh(self) -> int:
        self.now += 1000  # is not timed
        return len(self.order)


def timed(clock: Clock, calls: dict[str, Callable[[int], None]], **options: Any) -> dict[str, Timing]:
    return interleaved(calls, clock.fresh, wall=clock.wall, cpu=clock.cpu, **options)


def test_rounds_take_turns_and_quartiles_are_taken() -> None:
    clock = Clock()
    found = timed(clock, {"a": clock.work("a", 9, 1, 2, 30), "b": clock.work("b", 9, 4, 4, 4)}, rounds=3)
    assert found["a"] == Timing(Spread(1.5, 2, 16), Spread(0.75, 1, 8), 3)
    assert found["b"] == Timing(Spread(4, 4, 4), Spread(2, 2, 2), 3)
    assert "".join(clock.order) == "ab" + "ab" + "ba" + "ab"


def test_all_calls_of_a_round_get_its_input() -> None:
    clock = Clock()
    timed(clock, {"a": clock.work("a", 1), "b": clock.work("b", 1)}, rounds=2)
    assert clock.seen == [0, 0, 2, 2, 4, 4]


def test_time_runs_out_between_rounds() -> None:
    clock = Clock()
    clock.fresh = lambda: 0  # type: ignore[method-assign]
    assert timed(clock, {"a": clock.work("a", 1)}, warmup=0, rounds=100, seconds=2.5)["a"].rounds == 3
    assert timed(clock, {"a": clock.work("a", 1)}, seconds=0)["a"].rounds == 1


@pytest.mark.parametrize(("names", "rounds"), [("", 3), ("a", 0)], ids=["no call", "no round"])
def test_nothing_to_time(names: str, rounds: int) -> None:
    clock = Clock()
    with pytest.raises(UsageError, match="timing needs calls and at least one round"):
        timed(clock, {name: clock.work(name, 1) for name in names}, rounds=rounds)
