"""The tables of benchmarks/quality/README.md, from its rows.

PYTHONPATH=examples python -m benchmarks.quality.table

Perplexity / dense perplexity on the same tokens of each text, and `best` on the same calibration text / this recipe on those
that both were judged on, each with the 95 % interval of a paired bootstrap (scipy, percentile) over stretches of text. Of two
rows alike the later counts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.quality.texts import JUDGED

RESULTS = Path(__file__).parent / "results.jsonl"
#: Tokens of a window whose losses are summed: its first token is not predicted.
PREDICTED = 511
#: Windows of a stretch, about the length of a document and a half: losses of neighbours are alike, and must be drawn together.
STRETCH = 4
Row = dict[str, Any]
Floats = NDArray[np.float64]


def tables(rows: Iterable[Row]) -> str:
    """Markdown: a table of conversions without training, and one of aligned ones."""
    found = [row for row in rows if row["benchmark"] == "quality" and "windows" in row["texts"]["same kind"]]
    [*_, dense] = [row for row in found if row["recipe"] == "dense"]
    latest = {_key(row): row for row in found if row["recipe"] != "dense"}
    parts = []
    for how in sorted({key[0] for key in latest}):
        chosen = [row for key, row in latest.items() if key[0] == how]
        title = f"**Aligned, {how}**" if how else "**Without training**"
        parts.append(f"{title}\n\n{_table(chosen, dense)}")
    return "\n\n".join(parts)


def ratio_interval(one: Floats, other: Floats, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of perplexity(one) / perplexity(other), of the mean losses of each window, [windows]."""
    whole = len(one) // STRETCH * STRETCH
    stretches = (one - other)[:whole].reshape(-1, STRETCH).mean(1)
    test = stats.bootstrap((stretches,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(seed))
    return float(np.exp(test.confidence_interval.low)), float(np.exp(test.confidence_interval.high))


def _table(rows: list[Row], dense: Row) -> str:
    heads = ["active", "recipe", "calibration tokens"]
    for title in JUDGED:
        heads += [title, "`best` / this"]
    lines = ["| " + " | ".join([*heads, "measured active", "CPU s", "commit"]) + " |", "| --- " * (len(heads) + 3) + "|"]
    lines += [_line(row, dense, _best_beside(row, rows)) for row in sorted(rows, key=_order)]
    return "\n".join(lines)


def _best_beside(row: Row, rows: list[Row]) -> Row | None:
    """`best` on the same calibration text, aligned alike: with its own settings, or else as it was measured last."""
    alike = [r for r in rows if r["recipe"] == "best" and _terms(r) == _terms(row)]
    return next((r for r in alike if not r["settings"]), alike[-1] if alike else None)


def _line(row: Row, dense: Row, best: Row | None) -> str:
    cells = [f"{row['active']:.2f}", " ".join([f"`{row['recipe']}`", *row["settings"]]), _calibration(row)]
    for title in JUDGED:
        own = _losses(row, title)
        cells.append(_ratio(own, _losses(dense, title)))
        cells.append("-" if best is None or best is row else _ratio(_losses(best, title), own))
    fractions = [row["texts"][title]["active"] for title in JUDGED]
    cells.append(", ".join("-" if value is None else f"{value:.3f}" for value in fractions))
    return "| " + " | ".join([*cells, str(row["seconds"]["cpu"]), row["commit"]]) + " |"


def _ratio(one: Floats, other: Floats) -> str:
    """On the windows that both were judged on, with its interval."""
    common = min(len(one), len(other))
    low, high = ratio_interval(one[:common], other[:common])
    return f"{np.exp((one[:common] - other[:common]).mean()):.3f} ({low:.3f} to {high:.3f})"


def _losses(row: Row, title: str) -> Floats:
    return np.array(row["texts"][title]["windows"], dtype=np.float64) / PREDICTED


def _calibration(row: Row) -> str:
    return f"{row['calibration tokens']:,}" + (f", {_own(row):,} of them own text" if _own(row) else "")


def _own(row: Row) -> int:
    """How many of the tokens that it was calibrated on the dense model wrote."""
    said = row.get("own text") or 0
    return 16_384 if said is True else int(said)


def _terms(row: Row) -> tuple[str, float, int, int]:
    """On what terms it was measured: how it was aligned, the budget, tokens of calibration, and how many of them own text."""
    return (row.get("aligned") or {}).get("how", ""), row["active"], row["calibration tokens"], _own(row)


def _key(row: Row) -> tuple[Any, ...]:
    return *_terms(row), row["recipe"], tuple(row["settings"])


def _order(row: Row) -> tuple[float, bool, str, int, int]:
    return -row["active"], row["recipe"] != "best", row["recipe"], row["calibration tokens"], _own(row)


def main() -> int:
    print(tables(json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
