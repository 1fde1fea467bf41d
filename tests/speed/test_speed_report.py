"""Cells and reports from times that are given."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from moeify.errors import MissingExtraError, UsageError
from moeify.measure.timing import Spread, Timing
from moeify.speed.cell import Cell
from moeify.speed.machine import Machine, Roof, best, last_level_cache, measure_roof
from moeify.speed.measuring import Form, Subject, cell_of
from moeify.speed.resident import Resident
from moeify.speed.settings import Effort, Settings
from moeify.speed.speed_report import SpeedReport
from moeify.speed.work import Work
from moeify.speed.workload import Place, Workload

ROOF = Roof(threads=1, bandwidth=1e6, rate=1e7)
FORMS = {"dense a": Form(Path("a"), dense=True), "dense b": Form(Path("b"), dense=True), "converted": Form(Path("c"))}
WORK = {"dense a": Work(8000, 200_000), "dense b": Work(8000, 200_000), "converted": Work(2000, 60_000)}

RUN = Place(16)


def timing(seconds: float) -> Timing:
    """On the wall twice as long as on the CPU."""
    return Timing(Spread(seconds, 2 * seconds, 4 * seconds), Spread(seconds / 2, seconds, 2 * seconds), 7)


def cell(threads: int = 1, place: Place = RUN) -> Cell:
    subject = Subject("it", FORMS, Workload({}, {}, cached=False), lambda place, form: WORK[form], (place,), layers=2)
    timings = {"dense a": timing(0.4), "dense b": timing(0.3), "converted": timing(0.1)}
    return cell_of(subject, place, timings, replace(ROOF, threads=threads), width=4.0)


def report(*cells: Cell) -> SpeedReport:
    memory = {"it": {"dense a": Resident(3_000_000, 4_000_000), "converted": Resident(1_000_000, 2_000_000)}}
    machine = Machine("a machine", 2, 32 * 2**20)
    return SpeedReport("fp32", "the native library", "tokens", machine, (ROOF,), cells, memory, notes=("take care",))


def test_the_fastest_dense_form_counts() -> None:
    found = cell()
    assert found.dense == "dense b"
    assert found.converted == ("converted",)
    assert found.speedup("converted") == pytest.approx(3)
    assert found.cpu_speedup("converted") == pytest.approx(3)


def test_figures_are_of_one_layer_and_shares_of_the_machine() -> None:
    form = cell().forms["converted"]
    assert form.wall.median == pytest.approx(0.1)  # of two layers
    assert (form.bytes, form.work.flops) == (4000, 30_000)
    assert form.bandwidth == pytest.approx(4000 / 0.05 / 1e6)  # by CPU time on one thread
    assert form.rate == pytest.approx(30_000 / 0.05 / 1e7)
    assert cell(threads=2).forms["converted"].bandwidth == pytest.approx(4000 / 0.1 / 1e6)  # by the wall on several


def test_the_roof_is_the_longer_of_reading_and_computing() -> None:
    assert ROOF.seconds(Work(1000, 1), 4.0) == pytest.approx(4e-3)
    assert ROOF.seconds(Work(1000, 10**6), 4.0) == pytest.approx(0.1)
    assert cell().roof == pytest.approx(max(0.016, 0.01) / max(0.004, 0.003))


def test_json_holds_every_figure() -> None:
    (found,) = json.loads(json.dumps(report(cell()).to_json()))["cells"]
    assert found["speedup"] == {"converted": pytest.approx(3)}
    assert found["forms"]["dense b"]["wall_ms"] == {
        "lower": pytest.approx(150), "median": pytest.approx(300), "upper": pytest.approx(600),
    }  # fmt: skip
    assert (found["phase"], found["tokens"], found["past"], found["rounds"]) == ("run", 16, None, 7)
    step = cell(place=Place(1, 128)).to_json()
    assert (step["phase"], step["past"]) == ("decode", 128)


def test_the_text_says_it_all() -> None:
    text = str(report(cell(), cell(place=Place(1, 128))))
    assert "a machine, 2 cores, 32 MB of cache; 1 thread: 0.0 GB/s, 0 GFLOP/s" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "16 1 300 (150 - 600) 100 (50 - 200) 3.00 3.00 4.00" in lines
    assert "1 after 128 1 300 (150 - 600) 100 (50 - 200) 3.00 3.00 4.00" in lines
    assert "16 1 converted 0.0 3e-05 8% 6%" in lines
    assert "dense a 3.0 4.0" in lines
    assert lines[-1] == "note: take care"


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_plot_is_drawn(suffix: str, tmp_path: Path) -> None:
    cells = (cell(), cell(place=Place(128)), cell(place=Place(1, 128)))
    content = report(*cells).plot(tmp_path / f"p{suffix}").read_bytes()
    assert content.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
    if suffix == ".svg":
        assert report(*cells).plot(tmp_path / "q.svg").read_bytes() == content
        assert report(*cells[:1]).plot(tmp_path / "r.svg").read_bytes() != content


def test_plots_that_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"p\.pdf: plots are written as \.png or \.svg"):
        report(cell()).plot(tmp_path / "p.pdf")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"needs the package matplotlib: run pip install 'moeify\[plot\]'"):
        report(cell()).plot(tmp_path / "p.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": (0,)}, "tokens is (0,): choose numbers from 1"),
        ({"tokens": ()}, "tokens and threads: choose at least one number of each"),
        ({"threads": (4096,)}, "threads is 4096: choose from 1 to"),
        ({"precision": "int3"}, "precision is 'int3': files are exported in fp32, fp16, int8, int4"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Settings(**options)  # type: ignore[arg-type]
    assert message in str(caught.value)
    with pytest.raises(UsageError, match="choose at least 1 round and more than 0 s"):
        Effort(rounds=0)


def test_places_are_each_once_and_steps_are_for_decoders() -> None:
    settings = Settings(tokens=(4, 1, 4), past=(8, 2))
    assert settings.places(cached=False) == (Place(4), Place(1))
    assert settings.places(cached=True) == (Place(4), Place(1), Place(1, 8), Place(1, 2))


def test_the_best_round_counts() -> None:
    ticks = iter([0.0, 5.0, 10.0, 12.0, 20.0, 23.0])
    assert best(lambda: None, 3, lambda: next(ticks)) == 2.0


def test_the_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert last_level_cache() >= 2**18
    monkeypatch.setattr("moeify.speed.machine.last_level_cache", lambda: 2**20)
    roof = measure_roof(threads=1, rounds=2)
    assert 1e8 < roof.bandwidth < 1e13
    assert 1e8 < roof.rate < 1e13
