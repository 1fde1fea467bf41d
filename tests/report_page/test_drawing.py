"""Geometry of charts: axes hold their values, matrices are drawn cell by cell, names stay apart."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeify.report_page.drawing import (
    FLOOR,
    LEVELS,
    Axis,
    Chart,
    linear_axis,
    log_axis,
    matrix_paths,
    short_names,
    strip,
    tick_text,
)

NUMBERS = st.floats(1e-8, 1e8)


@given(st.lists(NUMBERS, min_size=1, max_size=9))
def test_a_logarithmic_axis_holds_its_values(values: list[float]) -> None:
    axis = log_axis(values)
    assert axis.low < axis.high
    assert all(-1e-9 <= axis.place(value) <= 1 + 1e-9 for value in values)
    assert 2 <= len(axis.ticks) <= 9
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)


@given(st.lists(NUMBERS, min_size=1, max_size=9))
def test_a_linear_axis_holds_its_values(values: list[float]) -> None:
    axis = linear_axis(values, low=0.0)
    assert axis.low == 0
    assert all(-1e-9 <= axis.place(value) <= 1 + 1e-6 for value in values)
    assert 2 <= len(axis.ticks) <= 8


def test_values_without_a_logarithm_are_at_the_floor() -> None:
    axis = log_axis([0.0, 1.0])
    assert axis.low == FLOOR
    assert axis.place(0.0) == 0


def test_places_in_a_chart() -> None:
    chart = Chart((), Axis(0, 10, ()), Axis(1, 100, (), log=True), "x", "y", 300, 200, left=50, right=50, top=20, bottom=30)
    assert (chart.at_x(0), chart.at_x(5), chart.at_x(10)) == (50, 150, 250)
    assert (chart.at_y(1), chart.at_y(10), chart.at_y(100)) == (170, 95, 20)


MATRICES = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.one_of(st.none(), st.floats(-1, 2)), min_size=n, max_size=n), min_size=1, max_size=6)
)


@given(MATRICES)
def test_a_matrix_is_drawn_cell_by_cell(values: list[list[float | None]]) -> None:
    drawn = [[0.0] * len(values[0]) for _ in values]
    for strength, path in matrix_paths(values, 0.0, 1.0):
        for x, y, width in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\3z", path):
            for column in range(int(x), int(x) + int(width)):
                assert drawn[int(y)][column] == 0
                drawn[int(y)][column] = strength
    for row, cells in zip(drawn, values):
        for strength, value in zip(row, cells):
            wanted = min(max(value or 0.0, 0.0), 1.0)
            assert wanted - 1e-3 <= strength <= wanted + 1 / LEVELS + 1e-3


@given(st.lists(st.floats(0, 1), min_size=1, max_size=200), st.integers(1, 64))
def test_a_strip_covers_all_loads_once(loads: list[float], columns: int) -> None:
    runs = strip(loads, columns)
    assert [start for _, start, _ in runs] == [0, *(end for _, _, end in runs[:-1])]
    assert runs[-1][2] == len(loads)
    assert len(runs) == min(columns, len(loads))
    assert math.isclose(sum(mean * (end - start) for mean, start, end in runs), sum(loads), abs_tol=1e-9)


@pytest.mark.parametrize(
    ("paths", "short"),
    [
        (["model.layers.0.mlp", "model.layers.11.mlp"], ["0", "11"]),
        (["encoder.layer.0", "decoder.layer.0"], ["encoder", "decoder"]),
        (["a.0.b.ffn", "a.1.c.ffn"], ["0.b", "1.c"]),
        (["only.one"], ["only.one"]),
        (["x", "x.y"], ["x", "x.y"]),
        ([], []),
    ],
)
def test_names_stay_apart(paths: list[str], short: list[str]) -> None:
    assert short_names(paths) == short


def test_texts_of_ticks() -> None:
    assert [tick_text(value) for value in (0.0, 0.001, 0.25, 2.0, 1e4, 1e-6, 1e7)] == [
        "0",
        "0.001",
        "0.25",
        "2",
        "10000",
        "1e-6",
        "1e7",
    ]
