"""One point of a benchmark: every form of a model on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moeify.measure.timing import Spread, Timing
from moeify.speed.machine import Roof
from moeify.speed.work import Work
from moeify.speed.workload import Place


@dataclass(frozen=True)
class Measured:
    """One form. dense: what the others are compared with (of several dense forms the fastest is). wall, cpu: seconds a run.
    bytes: of weights that are read. bandwidth, rate: shares (0 to 1) of what the machine reaches; on one thread of CPU time, so
    that other programs of the machine count less.
    """

    dense: bool
    wall: Spread
    cpu: Spread
    work: Work
    bytes: float
    bandwidth: float
    rate: float

    @classmethod
    def of(cls, timing: Timing, work: Work, width: float, roof: Roof, *, dense: bool) -> Measured:
        """width: bytes of a weight."""
        seconds, size = busy(timing, roof.threads), work.weights * width
        shares = size / seconds / roof.bandwidth, work.flops / seconds / roof.rate
        return cls(dense, timing.wall, timing.cpu, work, size, *shares)

    def to_json(self) -> dict[str, Any]:
        return {
            "dense": self.dense,
            "wall_ms": _milliseconds(self.wall),
            "cpu_ms": _milliseconds(self.cpu),
            "weight_bytes": self.bytes,
            "flops": self.work.flops,
            "share_of_bandwidth": self.bandwidth,
            "share_of_flop_rate": self.rate,
        }


@dataclass(frozen=True)
class Cell:
    """subject: the folder or the shape of the layers. forms: by name. roof: dense time / converted time if both took no longer
    than the machine must: the longer of reading their weights and computing."""

    subject: str
    threads: int
    place: Place
    rounds: int
    forms: Mapping[str, Measured]
    roof: float

    @property
    def dense(self) -> str:
        """The fastest of the dense forms."""
        return min((name for name, form in self.forms.items() if form.dense), key=lambda name: self.forms[name].wall.median)

    @property
    def converted(self) -> tuple[str, ...]:
        """The names of the others."""
        return tuple(name for name, form in self.forms.items() if not form.dense)

    def speedup(self, name: str) -> float:
        """Dense time / time of that form, of medians on the wall."""
        return self.forms[self.dense].wall.median / self.forms[name].wall.median

    def cpu_speedup(self, name: str) -> float:
        """The same of process CPU time, where other programs of the machine count less."""
        return min(form.cpu.median for form in self.forms.values() if form.dense) / self.forms[name].cpu.median

    def to_json(self) -> dict[str, Any]:
        return {
            "subject": self.subject,
            "threads": self.threads,
            "phase": "run" if self.place.past is None else "decode",
            "tokens": self.place.tokens,
            "past": self.place.past,
            "rounds": self.rounds,
            "forms": {name: form.to_json() for name, form in self.forms.items()},
            "speedup": {name: self.speedup(name) for name in self.converted},
            "cpu_speedup": {name: self.cpu_speedup(name) for name in self.converted},
            "roof_speedup": self.roof,
        }


def busy(timing: Timing, threads: int) -> float:
    """Seconds of a run without those in which another program had the core; of several threads nobody knows which."""
    return (timing.cpu if threads == 1 else timing.wall).median


def _milliseconds(spread: Spread) -> dict[str, float]:
    return {"lower": spread.lower * 1e3, "median": spread.median * 1e3, "upper": spread.upper * 1e3}
