"""The picture of a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from moeify.errors import MissingExtraError, OutputError, UsageError
from moeify.speed.cell import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from moeify.speed.speed_report import SpeedReport

SUFFIXES = (".png", ".svg")


def check_plot(path: Path) -> None:
    """Raises UsageError for a suffix that is not drawn, MissingExtraError where matplotlib is absent."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: plots are written as {' or '.join(SUFFIXES)}; give such a name")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "drawing a plot") from error


def plot(report: SpeedReport, path: Path) -> Path:
    """Left the time of a run with its quartiles, right dense / converted and its roof, both over tokens. A file of the same
    report holds the same picture. Raises as `check_plot`, and OutputError where it cannot be written."""
    check_plot(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    times, ratios = figure.subplots(1, 2)
    for (name, past), cells in _lines(report.cells).items():
        _draw(times, ratios, name, past, cells)
    ticks = sorted({_over(cell) for cell in report.cells})
    for axes in (times, ratios):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xlabel(f"{report.unit} of a run (in the cache, for a step)")
        axes.grid(alpha=0.3)
    times.set_yscale("log")
    times.set_ylabel("ms" + (" a layer" if report.of_a_layer else ""))
    ratios.axhline(1, color="black", linewidth=0.8)
    ratios.set_ylabel("dense / converted")
    ratios.set_ylim(bottom=0)
    for axes in (times, ratios):
        axes.legend(fontsize="small")
    figure.suptitle(f"{report.precision}, {report.machine.name}", fontsize="medium")
    try:
        with rc_context({"svg.hashsalt": "moeify"}):
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    return path


def _lines(cells: tuple[Cell, ...]) -> dict[tuple[str, bool], list[Cell]]:
    """By what stays the same along a line: subject and threads; runs, and steps after a past."""
    found: dict[tuple[str, bool], list[Cell]] = {}
    for cell in cells:
        threads = f"{cell.threads} thread{'s' if cell.threads > 1 else ''}"
        found.setdefault((f"{cell.subject}, {threads}", cell.place.past is not None), []).append(cell)
    return {key: sorted(line, key=_over) for key, line in found.items()}


def _over(cell: Cell) -> int:
    return cell.place.tokens if cell.place.past is None else cell.place.past


def _draw(times: Axes, ratios: Axes, name: str, past: bool, cells: list[Cell]) -> None:
    over = [_over(cell) for cell in cells]
    label = f"{name}, step" if past else name
    style = "--" if past else "-"
    for kind in ("dense", "converted"):
        forms = [cell.forms[cell.dense if kind == "dense" else cell.converted[0]] for cell in cells]
        middle = [form.wall.median * 1e3 for form in forms]
        below = [(form.wall.median - form.wall.lower) * 1e3 for form in forms]
        above = [(form.wall.upper - form.wall.median) * 1e3 for form in forms]
        times.errorbar(over, middle, yerr=[below, above], marker="o", capsize=3, linestyle=style, label=f"{label}, {kind}")
    (line,) = ratios.plot(over, [cell.speedup(cell.converted[0]) for cell in cells], marker="o", linestyle=style, label=label)
    ratios.plot(over, [cell.roof for cell in cells], linestyle=":", marker="_", color=line.get_color(), label=f"{label}, roof")
