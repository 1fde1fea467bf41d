"""One picture of a sweep: what each recipe loses, against what it saves."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeify.errors import MissingExtraError
from moeify.measure.rows_file import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("png", "svg")


def check_matplotlib() -> None:
    """Raises MissingExtraError where matplotlib is absent."""
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "the picture of a sweep") from error


def loss_of(row: Row) -> float | None:
    """What a row lost: perplexity / dense, else the relative error of the model's output; None where it has neither."""
    found = row.get("ratio") if row.get("ratio") is not None else row.get("relative_error")
    return float(found) if found is not None else None


def relative_times(row: Row) -> dict[str, float]:
    """Time in ONNX Runtime / the dense model's, by the number of tokens."""
    return {tokens: times["converted"] / times["dense"] for tokens, times in (row.get("ms") or {}).items()}


def draw(rows: Sequence[Row], stem: Path) -> tuple[Path, ...]:
    """Writes STEM.png and STEM.svg: the loss against the active fraction, and against the time for each number of tokens; a
    line a recipe, crosses where an evaluation is void. Equal rows give equal files. No file where no row has a loss."""
    import matplotlib
    from matplotlib.figure import Figure

    shown = [row for row in rows if loss_of(row) is not None]
    if not shown:
        return ()
    tokens = list(dict.fromkeys(count for row in shown for count in relative_times(row)))
    with matplotlib.rc_context({"svg.hashsalt": "moeify"}):
        figure = Figure(figsize=(5 * (1 + len(tokens)), 4.2), layout="constrained")
        axes = figure.subplots(1, 1 + len(tokens), sharey=True, squeeze=False)[0]
        _panel(axes[0], shown, [row["active_fraction"] for row in shown], "active fraction of the FFNs' weights, as measured")
        for axis, count in zip(axes[1:], tokens):
            times = [relative_times(row).get(count) for row in shown]
            _panel(axis, shown, times, f"ONNX Runtime, {count} token{'s' * (count != '1')}, one thread: time / dense")
        ratio = shown[0].get("ratio") is not None
        axes[0].set_ylabel("perplexity / dense" if ratio else "relative error of the output")
        if ratio:
            axes[0].set_yscale("log")
        axes[0].legend()
        files = []
        for name in FORMATS:
            files.append(stem.with_suffix(f".{name}"))
            figure.savefig(files[-1], dpi=120, metadata={"Date": None} if name == "svg" else {"Software": None})
    return tuple(files)


def _panel(axis: Axes, rows: Sequence[Row], places: Sequence[Any], title: str) -> None:
    """One line a recipe, in the order of the rows."""
    for number, recipe in enumerate(dict.fromkeys(row["recipe"] for row in rows)):
        points = sorted(
            (x, loss_of(row) or 0.0, bool(row.get("void")))
            for row, x in zip(rows, places)
            if row["recipe"] == recipe and x is not None
        )
        line = axis.plot([x for x, _, _ in points], [y for _, y, _ in points], color=f"C{number}", marker="o", label=recipe)
        void = [(x, y) for x, y, wrong in points if wrong]
        axis.plot([x for x, _ in void], [y for _, y in void], "x", color=line[0].get_color(), markersize=12)
    axis.axvline(1.0, color="grey", linewidth=0.8, linestyle=":")
    if rows[0].get("ratio") is not None:
        axis.axhline(1.0, color="grey", linewidth=0.8, linestyle=":")
    axis.set_xlabel(title)
    axis.grid(alpha=0.3)
