"""Geometry of the page's charts: numbers in, positions and paths out; colours and words are the template's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Steps of strength in a matrix: one path each.
LEVELS = 12

#: The least value on a logarithmic axis.
FLOOR = 1e-9

Matrix = Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class Axis:
    """low, high: of the values. ticks: values that are marked."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, value: float) -> float:
        """0 at the lower end, 1 at the upper."""
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        return math.log(max(value, FLOOR) / self.low) / math.log(self.high / self.low)


def linear_axis(values: Sequence[float], *, low: float | None = None, high: float | None = None, count: int = 5) -> Axis:
    """Around the values, with round ticks; low, high: where it ends in any case."""
    bottom = min(values) if low is None else low
    top = max(values) if high is None else high
    step = _round_step((top - bottom) / count or 1.0)
    first, last = math.floor(bottom / step + 1e-9), math.ceil(top / step - 1e-9)
    last = max(last, first + 1)
    return Axis(first * step, last * step, tuple(round(index * step, 10) for index in range(first, last + 1)))


def log_axis(values: Sequence[float]) -> Axis:
    """Around the values, none below FLOOR; ticks at 1, 2 and 5 where they are few, else at powers of ten."""
    low, high = max(min(values), FLOOR), max(*values, FLOOR)
    fine = high / low < 50
    marks = [m * 10.0**e for e in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2) for m in _marks(fine)]
    below, above = [m for m in marks if m <= low * (1 + 1e-9)], [m for m in marks if m >= high * (1 - 1e-9)]
    bottom, top = below[-1], next(m for m in above if m > below[-1])
    ticks = [m for m in marks if bottom <= m <= top]
    return Axis(bottom, top, tuple(ticks[:: max(1, math.ceil(len(ticks) / 8))]), log=True)


def _marks(fine: bool) -> tuple[float, ...]:
    return (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if fine else (1.0,)


def _round_step(rough: float) -> float:
    size = 10.0 ** math.floor(math.log10(rough))
    return next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= rough * (1 - 1e-9))


def tick_text(value: float) -> str:
    """As short as it can be told."""
    return (
        f"{value:.10g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    )


@dataclass(frozen=True)
class Series:
    """points: (x, y, what is said of it), by x. crossed: indices of points that are not valid."""

    name: str
    points: tuple[tuple[float, float, str], ...]
    crossed: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Chart:
    """Lines over two axes in a box of that many units. rule: a y that is marked by a line across; upright: such an x."""

    series: tuple[Series, ...]
    x: Axis
    y: Axis
    x_label: str
    y_label: str
    width: int
    height: int = 300
    rule: float | None = None
    upright: float | None = None
    x_ticks: tuple[tuple[float, str], ...] = ()
    left: int = 52
    right: int = 14
    top: int = 14
    bottom: int = 46

    def at_x(self, value: float) -> float:
        return round(self.left + self.x.place(value) * (self.width - self.left - self.right), 1)

    def at_y(self, value: float) -> float:
        return round(self.height - self.bottom - self.y.place(value) * (self.height - self.top - self.bottom), 1)

    def line(self, series: Series) -> str:
        """The points of a polyline."""
        return " ".join(f"{self.at_x(x)},{self.at_y(y)}" for x, y, _ in series.points)

    @property
    def marked(self) -> tuple[tuple[float, str], ...]:
        """(x, text) of the ticks below."""
        return self.x_ticks or tuple((tick, tick_text(tick)) for tick in self.x.ticks)


def matrix_paths(values: Matrix, low: float, top: float) -> list[tuple[float, str]]:
    """(strength from 0 to 1, path of unit cells) of a matrix: 0 up to `low`, 1 from `top`, in LEVELS steps between. Runs of
    equal cells in a row are one rectangle."""
    paths: dict[int, list[str]] = {}
    for row, cells in enumerate(values):
        levels = [0 if cell is None else _level((cell - low) / (top - low)) for cell in cells]
        start = 0
        for column in range(1, len(levels) + 1):
            if column == len(levels) or levels[column] != levels[start]:
                if levels[start]:
                    paths.setdefault(levels[start], []).append(f"M{start} {row}h{column - start}v1h-{column - start}z")
                start = column
    return [(round(level / LEVELS, 3), "".join(parts)) for level, parts in sorted(paths.items())]


def _level(share: float) -> int:
    return min(max(math.ceil(share * LEVELS - 1e-9), 0), LEVELS)


def strip(loads: Sequence[float], columns: int) -> list[tuple[float, int, int]]:
    """(mean, first, one past the last) of runs of neighbouring values, at most so many."""
    edges = sorted({round(index * len(loads) / min(columns, len(loads))) for index in range(min(columns, len(loads)) + 1)})
    return [(sum(loads[a:b]) / (b - a), a, b) for a, b in zip(edges, edges[1:])]


def short_names(paths: Sequence[str]) -> list[str]:
    """What tells the dotted names apart: parts that all share at either end are left out."""
    parts = [path.split(".") for path in paths]
    if len(paths) < 2:
        return list(paths)
    least = min(map(len, parts))
    front = next((i for i in range(least) if len({p[i] for p in parts}) > 1), least)
    back = next((i for i in range(least - front) if len({p[-1 - i] for p in parts}) > 1), least - front)
    short = [".".join(p[front : len(p) - back]) for p in parts]
    return short if all(short) and len(set(short)) == len(set(paths)) else list(paths)
