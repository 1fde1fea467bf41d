"""Runs, steps and memory of files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeify.errors import InputError, UsageError
from moeify.runtime.decoder import Decoder
from moeify.runtime.session import session
from moeify.speed.machine import Roof
from moeify.speed.measuring import Form, Subject, measure_cell, resident, sessions
from moeify.speed.settings import Effort, Settings
from moeify.speed.work import Work
from moeify.speed.workload import Array, Place, Workload, caller
from small_decoder import VOCABULARY, small_decoder


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "m.onnx"
    small_decoder(path)
    return path


@dataclass
class Watched:
    """A workload that keeps what it drew."""

    drawn: list[Array] = field(default_factory=list)
    cached: bool = True
    unit: str = "tokens"

    def draw(self, tokens: int, rng: np.random.Generator) -> Mapping[str, Array]:
        feeds = Workload({}, {}, cached=True, vocabulary=VOCABULARY).draw(tokens, rng)
        self.drawn.append(feeds["input_ids"])
        return feeds


def subject(file: Path, inputs: Any, *places: Place) -> Subject:
    forms = {"dense": Form(file, dense=True, native=False), "converted": Form(file, native=True)}
    return Subject("it", forms, inputs, lambda place, form: Work(100, 1000), places)


def test_every_step_comes_after_the_same_past(file: Path) -> None:
    past, token = np.array([[3, 1, 4]]), np.array([[7]])
    step = caller(session(file), cached=True, place=Place(1, 3), past=past)
    first, again = (np.asarray(step({"input_ids": token})) for _ in range(2))
    decoder = Decoder(session(file))
    decoder.step(past)
    expected = decoder.step(token)
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(again, expected)
    assert not np.allclose(decoder.step(token), expected)  # the cache counts
    alone = np.asarray(caller(session(file), cached=True, place=Place(1))({"input_ids": token}))
    assert not np.allclose(alone, expected)


@pytest.mark.parametrize("place", [Place(4), Place(1, 6)], ids=str)
def test_a_cell_has_fresh_inputs_each_round_and_every_form(place: Place, file: Path) -> None:
    inputs = Watched()
    it = subject(file, inputs, place)
    settings = Settings(effort=Effort(rounds=5, seconds=60, warmup=1))
    cell = measure_cell(it, sessions(it, 1), place, Roof(1, 1e9, 1e9), settings)
    assert (cell.place, cell.rounds, set(cell.forms)) == (place, 5, {"dense", "converted"})
    drawn = inputs.drawn if place.past is None else inputs.drawn[1:]
    assert [ids.shape for ids in drawn] == [(1, place.tokens)] * 6
    assert len({ids.tobytes() for ids in drawn}) > 1
    assert all(form.wall.median > 0 for form in cell.forms.values())


def test_tokens_that_a_file_does_not_take(file: Path) -> None:
    run = caller(session(file), cached=True, place=Place(2))
    with pytest.raises(UsageError, match=r"ONNX Runtime cannot run 2 tokens: .*; ask for fewer"):
        run({"input_ids": np.array([[1, VOCABULARY]])})


def test_memory_is_that_of_the_file(tmp_path: Path, file: Path) -> None:
    found = resident(subject(file, Watched(), Place(1)), Settings(tokens=(1, 3)))
    assert set(found) == {"dense", "converted"}
    for form in found.values():
        assert 0 < form.loaded <= form.run < 100 << 20
    with pytest.raises(InputError, match=r"its memory cannot be measured: .*no such file"):
        resident(subject(tmp_path / "no.onnx", Watched(), Place(1)), Settings())
