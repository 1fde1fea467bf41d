"""Timing several things against one another: rounds take turns, so that a drifting machine hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from moeify.errors import UsageError


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median, the fastest and the slowest of so many rounds."""

    median: float
    fastest: float
    slowest: float
    rounds: int


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    warmup: int = 1,
    rounds: int = 5,
    seconds: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times each call once a round, in turn, the order reversed every other round.

    warmup: untimed rounds before. seconds: stop before `rounds` once so much time has been spent on timed rounds (at least
    one is made). Raises UsageError for no call or no round.
    """
    if not calls or rounds < 1 or warmup < 0:
        raise UsageError(f"timing needs calls and at least one round: {len(calls)} calls, {rounds} rounds, {warmup} warm-up")
    for _ in range(warmup):
        for call in calls.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    begin = clock()
    for index in range(rounds):
        for name in calls if index % 2 == 0 else reversed(list(calls)):
            start = clock()
            calls[name]()
            times[name].append(clock() - start)
        if seconds is not None and clock() - begin >= seconds:
            break
    return {name: Timing(median(taken), min(taken), max(taken), len(taken)) for name, taken in times.items()}
