"""What a benchmark measures, and how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moeify.errors import UsageError
from moeify.speed.machine import cores
from moeify.speed.workload import Place


@dataclass(frozen=True)
class Effort:
    """How long is measured: so many rounds of every cell, fewer once `seconds` are over. Raises UsageError below 1 or 0."""

    rounds: int = 30
    seconds: float = 3.0
    warmup: int = 2

    def __post_init__(self) -> None:
        if self.rounds < 1 or not self.seconds > 0:
            raise UsageError(f"rounds is {self.rounds} and seconds {self.seconds}: choose at least 1 round and more than 0 s")


#: Bytes of a weight as it is computed with, scales included: halves become floats when a file is loaded (docs/quantisation.md).
PRECISIONS: Mapping[str, float] = {"fp32": 4.0, "fp16": 4.0, "int8": 1.0, "int4": 0.625}


@dataclass(frozen=True)
class Settings:
    """What is measured, and how. tokens: of one run; past: before a step of one token, for decoders. Raises UsageError for
    what cannot be measured here."""

    tokens: tuple[int, ...] = (1, 16, 128, 512)
    past: tuple[int, ...] = (128,)
    threads: tuple[int, ...] = (1,)
    precision: str = "fp32"
    effort: Effort = Effort()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "past", "threads"):
            if any(number < 1 for number in getattr(self, name)):
                raise UsageError(f"{name} is {getattr(self, name)}: choose numbers from 1")
        if not self.tokens or not self.threads:
            raise UsageError("tokens and threads: choose at least one number of each")
        if max(self.threads) > cores():
            raise UsageError(f"threads is {max(self.threads)}: choose from 1 to {cores()} (the cores that there are)")
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision is {self.precision!r}: files are exported in {', '.join(PRECISIONS)}; choose that")

    def places(self, *, cached: bool) -> tuple[Place, ...]:
        """In order, each once. cached: steps of a decoder too."""
        steps = [Place(1, past) for past in self.past] if cached else []
        return tuple(dict.fromkeys((*map(Place, self.tokens), *steps)))
