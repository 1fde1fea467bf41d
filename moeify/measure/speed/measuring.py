"""All forms of a model at all places, in one process, by turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moeify.errors import UsageError
from moeify.measure.speed.cell import Cell, Measured
from moeify.measure.speed.machine import Roof, cores, measure_roof, this_machine
from moeify.measure.speed.resident import Resident, measure_resident
from moeify.measure.speed.speed_report import SpeedReport
from moeify.measure.speed.work import Work
from moeify.measure.speed.workload import Inputs, Place, caller
from moeify.measure.timing import Timing, interleaved
from moeify.runtime.native import wanted
from moeify.runtime.session import session

if TYPE_CHECKING:
    import onnxruntime

#: Threads of a session wait actively for its next run; those of the other form need the cores by then.
_TAKING_TURNS = {"session.force_spinning_stop": "1"}


@dataclass(frozen=True)
class Effort:
    """How long is measured: so many rounds of every cell, fewer once `seconds` are over. Raises UsageError below 1 or 0."""

    rounds: int = 30
    seconds: float = 3.0
    warmup: int = 2

    def __post_init__(self) -> None:
        if self.rounds < 1 or not self.seconds > 0:
            raise UsageError(f"rounds is {self.rounds} and seconds {self.seconds}: choose at least 1 round and more than 0 s")


#: Bytes of a weight.
PRECISIONS: Mapping[str, float] = {"fp32": 4.0}


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


@dataclass(frozen=True)
class Form:
    """A file to measure. dense: what the others are compared with. native: as `session` takes it."""

    path: Path
    dense: bool = False
    native: bool | None = None


@dataclass(frozen=True, eq=False)
class Subject:
    """work: of one run at a place, by form. layers: figures are divided by it."""

    name: str
    forms: Mapping[str, Form]
    inputs: Inputs
    work: Callable[[Place, str], Work]
    places: tuple[Place, ...]
    layers: int = 1


def report(
    subjects: Sequence[Subject],
    settings: Settings,
    *,
    of_a_layer: bool = False,
    notes: tuple[str, ...] = (),
    progress: Callable[[str, int, int | None], None] = lambda task, done, total: None,
) -> SpeedReport:
    """Measures everything: the machine, the memory of every file, every cell."""
    progress("measuring the machine", 0, None)
    roofs = tuple(measure_roof(threads) for threads in settings.threads)
    progress("measuring memory", 0, None)
    memory = {subject.name: resident(subject, settings) for subject in subjects}
    cells: list[Cell] = []
    total = len(roofs) * sum(len(subject.places) for subject in subjects)
    for subject, roof in ((subject, roof) for subject in subjects for roof in roofs):
        files = {
            name: session(form.path, roof.threads, native=form.native, config=_TAKING_TURNS)
            for name, form in subject.forms.items()
        }
        for place in subject.places:
            progress("timing", len(cells), total)
            cells.append(measure_cell(subject, files, place, roof, settings))
    return SpeedReport(
        settings.precision, "the native library" if wanted() else "their function bodies", subjects[0].inputs.unit,
        this_machine(), roofs, tuple(cells), memory, of_a_layer, notes,
    )  # fmt: skip


def measure_cell(
    subject: Subject, files: Mapping[str, onnxruntime.InferenceSession], place: Place, roof: Roof, settings: Settings
) -> Cell:
    """All forms at one place, by turns, on the same inputs. files: sessions by form, on the threads of the roof."""
    inputs, effort, rng = subject.inputs, settings.effort, np.random.default_rng((settings.seed, place.tokens))
    past = None if place.past is None else inputs.draw(place.past, rng)["input_ids"]
    calls = {name: caller(file, cached=inputs.cached, place=place, past=past) for name, file in files.items()}
    timings = interleaved(
        calls,
        lambda: inputs.draw(place.tokens, rng),
        warmup=effort.warmup,
        rounds=effort.rounds,
        seconds=effort.seconds,
    )
    return cell_of(subject, place, timings, roof, PRECISIONS[settings.precision])


def cell_of(subject: Subject, place: Place, timings: Mapping[str, Timing], roof: Roof, width: float) -> Cell:
    """From the times of whole runs."""
    part, measured = 1 / subject.layers, {}
    for name, timing in timings.items():
        one = Timing(timing.wall.times(part), timing.cpu.times(part), timing.rounds)
        work = subject.work(place, name)
        share = Work(round(work.weights * part), round(work.flops * part))
        measured[name] = Measured.of(one, share, width, roof, dense=subject.forms[name].dense)
    least = {dense: min(roof.seconds(m.work, width) for m in measured.values() if m.dense is dense) for dense in (True, False)}
    rounds = next(iter(timings.values())).rounds
    return Cell(subject.name, roof.threads, place, rounds, measured, least[True] / least[False])


def resident(subject: Subject, settings: Settings) -> dict[str, Resident]:
    """The memory of each form, whatever else this process holds; the run is of the most tokens that are measured."""
    tokens = max(settings.tokens)
    feeds = subject.inputs.draw(tokens, np.random.default_rng((settings.seed, tokens)))
    return {
        name: measure_resident(form.path, settings.threads[0], form.native, feeds, cached=subject.inputs.cached)
        for name, form in subject.forms.items()
    }
