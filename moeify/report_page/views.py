"""From facts to what the page's sections show; each is None where nothing was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moeify.measure.co_activation import CoActivation
from moeify.measure.layer_errors import NAMES
from moeify.measure.load import LayerLoad
from moeify.measure.routing_facts import LayerTogether
from moeify.measure.verdicts import EXACT
from moeify.report_page.drawing import Axis, Chart, Series, linear_axis, log_axis, matrix_paths, short_names, strip
from moeify.report_page.folder_facts import LayerFacts
from moeify.report_page.measured_files import SpeedRow, SweepPoint

#: Widths of a chart in pixels: on a screen and on paper, and on a phone.
WIDTHS = (960, 340)

#: Experts of a layer that are drawn one by one; more are drawn in so many runs.
COLUMNS = 64

#: Groups that are outlined in a matrix.
OUTLINED = 24

ERROR_NAMES = {
    "converted": "this conversion",
    "static-mask": "static mask",
    "random-partition": "random experts",
    "oracle-routing": "best choice of experts",
    "full-rank-compensation": "full-rank compensation",
}


def error_charts(layers: Sequence[LayerFacts]) -> list[Chart]:
    """The error of each judged layer beside its nulls, in order; none where fewer than two were judged."""
    judged = [layer for layer in layers if layer.errors]
    if len(judged) < 2:
        return []
    names = short_names([layer.path for layer in judged])
    series = [
        Series(
            ERROR_NAMES[name],
            tuple(
                (index, max(layer.errors[name], EXACT), f"{layer.path}: {ERROR_NAMES[name]} {layer.errors[name]:.3g}")
                for index, layer in enumerate(judged)
                if name in layer.errors
            ),
        )
        for name in NAMES
        if any(name in layer.errors for layer in judged)
    ]
    y = log_axis([value for line in series for _, value, _ in line.points])
    x = Axis(-0.3, len(judged) - 0.7, ())
    charts = []
    for width in WIDTHS:
        longest = max(map(len, names)) * 8 + 12
        step = max(1, -(-longest * len(judged) // (width - 70)))
        ticks = tuple((index, name) for index, name in enumerate(names) if index % step == 0)
        charts.append(
            Chart(
                tuple(series), x, y, "layer", "relative squared error", width, x_ticks=ticks, height=320 if width > 500 else 280
            )
        )
    return charts


@dataclass(frozen=True)
class Strip:
    """A layer's loads, largest first. cells: (load, words); dead: experts that no token chose."""

    name: str
    load: LayerLoad
    cells: tuple[tuple[float, str], ...]

    @property
    def dead(self) -> int:
        return len(self.load.dead)


def strips(loads: Sequence[LayerLoad], names: Sequence[str]) -> list[Strip]:
    """One a layer that has more than one expert."""
    found = []
    for name, load in zip(names, loads):
        if load.experts < 2:
            continue
        order = sorted(range(load.experts), key=lambda expert: (-load.loads[expert], expert))
        runs = strip([load.loads[expert] for expert in order], COLUMNS)
        cells = tuple(
            (mean, f"expert {order[a]}: {mean:.1%} of tokens" if b == a + 1 else f"{b - a} experts: {mean:.1%} of tokens each")
            for mean, a, b in runs
        )
        found.append(Strip(name, load, cells))
    return found


@dataclass(frozen=True)
class Panel:
    """A matrix. paths: (strength, path) in units of cells; side: cells along a side; groups: (start, length) of blocks to
    outline, in cells."""

    title: str
    words: str
    side: int
    paths: tuple[tuple[float, str], ...]
    groups: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class TogetherView:
    """A layer's matrices. low, top: the values drawn at no and at full strength in those of neurons."""

    path: str
    together: LayerTogether
    panels: tuple[Panel, ...]
    low: float
    top: float

    @property
    def correlations(self) -> tuple[str, ...]:
        """What the means of the correlations are, before -> after."""
        after, before = self.together.neurons, self.together.before
        found = []
        for words, name in (("within an expert", "within"), ("between experts", "between")):
            values = [getattr(each, name) for each in (before, after) if each is not None]
            if values and None not in values:
                found.append(f"mean correlation {words}: " + " → ".join(f"{value:.3f}" for value in values))
        return tuple(found)


def together_view(found: LayerTogether, layer: LayerFacts) -> TogetherView:
    """The matrices that there are of a layer."""
    panels, ends = [], (0.0, 1.0)
    if found.neurons is not None:
        ends = _ends(found.neurons)
        if found.before is not None:
            panels.append(_neurons("neurons, before", "in the order of the dense model", found.before, ends, ()))
        sizes = (layer.shared, *layer.sizes) if layer.shared else layer.sizes
        panels.append(_neurons("neurons, by expert", "put together by expert", found.neurons, ends, sizes))
    if found.experts is not None:
        count = len(found.experts)
        words = f"share of tokens on which two of the {count} experts run together; full strength is every token"
        panels.append(Panel("experts together", words, count, tuple(matrix_paths(found.experts, 0.0, 1.0))))
    return TogetherView(layer.path, found, tuple(panels), *ends)


def _neurons(title: str, order: str, found: CoActivation, ends: tuple[float, float], sizes: Sequence[int]) -> Panel:
    side, groups, start = len(found.bins), [], 0
    for size in sizes if len(sizes) <= OUTLINED else ():
        groups.append((round(start * side / sum(sizes), 2), round(size * side / sum(sizes), 2)))
        start += size
    words = f"correlation of {found.neurons} neurons {order}"
    return Panel(title, words, side, tuple(matrix_paths(found.bins, *ends)), tuple(groups))


def _ends(found: CoActivation) -> tuple[float, float]:
    """Between which nearly all cells are, the weakest 2 % and the strongest left out; none below 0."""
    values = sorted(value for row in found.bins for value in row if value is not None) or [0.0]
    low, top = (max(values[round(share * (len(values) - 1))], 0.0) for share in (0.02, 0.98))
    return low, max(top, low + 1e-3)


def quality_charts(points: Sequence[SweepPoint], here: float | None) -> list[Chart]:
    """Loss against the active fraction, a line a recipe. here: the active fraction of this folder."""
    shown = [point for point in points if point.active is not None and point.loss is not None]
    if not shown:
        return []
    ratio = all(point.ratio for point in shown)
    series = []
    for recipe in dict.fromkeys(point.recipe for point in shown):
        own = sorted((p.active or 0.0, p.loss or 0.0, p.void) for p in shown if p.recipe == recipe)
        words = "perplexity / dense" if ratio else "relative error"
        series.append(
            Series(
                recipe,
                tuple((x, y, f"{recipe}: {x:.1%} active, {words} {y:.3g}" + (", void" if v else "")) for x, y, v in own),
                frozenset(index for index, (_, _, void) in enumerate(own) if void),
            )
        )
    losses = [point.loss or 0.0 for point in shown]
    y = log_axis([1.0, *losses]) if ratio else linear_axis(losses, low=0.0)
    x = linear_axis([0.0, 1.0, *(point.active or 0.0 for point in shown)], low=0.0)
    label = "perplexity / dense" if ratio else "relative error of the output"
    return [
        Chart(
            tuple(series), x, y, "active fraction of the FFNs' weights", label, width, 340 if width > 500 else 300,
            rule=1.0 if ratio else None, upright=here,
        )
        for width in WIDTHS
    ]  # fmt: skip


@dataclass(frozen=True)
class SpeedBar:
    """A row with its bar: from `start`, so long, in hundredths of the width; 50 is as fast as the dense model."""

    row: SpeedRow
    start: float
    length: float
    roof: float


def speed_bars(rows: Sequence[SpeedRow]) -> list[SpeedBar]:
    """Bars on one logarithmic scale, to the right where the converted model is faster."""
    far = max((abs(math.log(max(value, 1e-6))) for row in rows for value in (row.speedup, row.roof)), default=0.0)
    scale = 48 / max(far, math.log(1.25))
    found = []
    for row in rows:
        end, roof = (50 + scale * math.log(max(value, 1e-6)) for value in (row.speedup, row.roof))
        found.append(SpeedBar(row, round(min(50.0, end), 2), round(abs(end - 50), 2), round(roof, 2)))
    return found
