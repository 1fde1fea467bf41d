"""All forms of a model at all places, in one process, by turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moeify.measure.timing import Timing, interleaved
from moeify.runtime.native import wanted
from moeify.runtime.session import session
from moeify.speed.cell import Cell, Measured
from moeify.speed.machine import Roof, measure_roof, this_machine
from moeify.speed.resident import Resident, measure_resident
from moeify.speed.settings import PRECISIONS, Settings
from moeify.speed.speed_report import SpeedReport
from moeify.speed.work import Work
from moeify.speed.workload import Inputs, Place, caller

if TYPE_CHECKING:
    import onnxruntime

#: Threads of a session wait actively for its next run; those of the other form need the cores by then.
_TAKING_TURNS = {"session.force_spinning_stop": "1"}


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
        files = sessions(subject, roof.threads)
        for place in subject.places:
            progress("timing", len(cells), total)
            cells.append(measure_cell(subject, files, place, roof, settings))
    return SpeedReport(
        settings.precision, "the native library" if wanted() else "their function bodies", subjects[0].inputs.unit,
        this_machine(), roofs, tuple(cells), memory, of_a_layer, notes,
    )  # fmt: skip


def sessions(subject: Subject, threads: int) -> dict[str, onnxruntime.InferenceSession]:
    """By form."""
    return {name: session(form.path, threads, native=form.native, config=_TAKING_TURNS) for name, form in subject.forms.items()}


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
