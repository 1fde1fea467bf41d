"""Time of a conversion grows with the model and no faster, memory with its width alone: one architecture in three depths."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.scale import curve

HIDDEN, LAYERS, FLOAT = 512, (4, 8, 16), 4


@pytest.mark.slow
def test_time_is_linear_and_memory_that_of_a_layer(tmp_path: Path) -> None:
    small, middle, large = curve("emoe", HIDDEN, LAYERS, tmp_path)
    step = middle["parameters"] - small["parameters"]
    assert large["parameters"] - middle["parameters"] == 2 * step
    # Of the processor: a curve that bends upwards by a quarter over a doubling is no straight line.
    assert large["processor"] - middle["processor"] < 1.25 * 2 * (middle["processor"] - small["processor"])
    # Dense and converted layers lie in files; held in memory they would make it twice as much as the dense ones.
    assert large["bytes"] - small["bytes"] < FLOAT * 3 * step / 2
