"""Timing several things against one another: rounds take turns, so that a drifting machine hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Self, TypeVar

from moeify.errors import UsageError

T = TypeVar("T")
Clock = Callable[[], float]


@dataclass(frozen=True)
class Spread:
    """The median of several measurements and the quartiles around it."""

    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Of one value or more."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        lower, _, upper = quantiles(values, method="inclusive")
        return cls(lower, median(values), upper)

    def times(self, factor: float) -> Spread:
        return Spread(self.lower * factor, self.median * factor, self.upper * factor)


@dataclass(frozen=True)
class Timing:
    """Seconds of one call over so many rounds: on the wall, and of the process on all its threads together."""

    wall: Spread
    cpu: Spread
    rounds: int


def interleaved(
    calls: Mapping[str, Callable[[T], object]],
    fresh: Callable[[], T],
    *,
    warmup: int = 1,
    rounds: int = 5,
    seconds: float | None = None,
    wall: Clock = time.perf_counter,
    cpu: Clock = time.process_time,
) -> dict[str, Timing]:
    """Times each call once a round, in turn, the order reversed every other round.

    fresh: makes the input of a round, which every call gets; it is not timed. warmup: untimed rounds before. seconds: stop
    before `rounds` once so much time has been spent on timed rounds (at least one is made). Raises UsageError for no call or
    no round.
    """
    if not calls or rounds < 1 or warmup < 0:
        raise UsageError(f"timing needs calls and at least one round: {len(calls)} calls, {rounds} rounds, {warmup} warm-up")
    for _ in range(warmup):
        x = fresh()
        for call in calls.values():
            call(x)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    begin = wall()
    for index in range(rounds):
        x = fresh()
        for name in calls if index % 2 == 0 else reversed(list(calls)):
            start = wall(), cpu()
            calls[name](x)
            times[name].append((wall() - start[0], cpu() - start[1]))
        if seconds is not None and wall() - begin >= seconds:
            break
    return {
        name: Timing(Spread.of([w for w, _ in taken]), Spread.of([c for _, c in taken]), len(taken))
        for name, taken in times.items()
    }
