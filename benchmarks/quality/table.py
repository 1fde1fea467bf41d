"""The tables of benchmarks/quality/README.md, from its rows.

PYTHONPATH=examples python -m benchmarks.quality.table

Perplexity / dense perplexity on the same windows of each text, with the interval that `best` / this recipe lies in: 95 % of a
paired bootstrap over windows (scipy, percentile), on the windows that both were judged on. Of two rows alike the later counts.
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
Row = dict[str, Any]
Floats = NDArray[np.float64]


def tables(rows: Iterable[Row]) -> str:
    """Markdown: a table of conversions without training, and one of aligned ones."""
    found = [row for row in rows if row["benchmark"] == "quality" and "windows" in row["texts"]["same kind"]]
    [*_, dense] = [row for row in found if row["recipe"] == "dense"]
    latest = {_key(row): row for row in found if row["recipe"] != "dense"}
    parts = []
    for how in sorted({key[2] for key in latest}):
        chosen = [row for key, row in latest.items() if key[2] == how]
        title = f"**Aligned, {how}**" if how else "**Without training**"
        parts.append(f"{title}\n\n{_table(chosen, dense)}")
    return "\n\n".join(parts)


def ratio_interval(best: Floats, other: Floats, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of perplexity(best) / perplexity(other), of the mean losses of each window, [windows]."""
    test = stats.bootstrap((best - other,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(seed))
    return float(np.exp(test.confidence_interval.low)), float(np.exp(test.confidence_interval.high))


def _table(rows: list[Row], dense: Row) -> str:
    heads = ["active", "recipe", "calibration tokens"]
    for title in JUDGED:
        heads += [title, "`best` / this"]
    lines = ["| " + " | ".join([*heads, "measured active", "CPU s", "commit"]) + " |", "| --- " * (len(heads) + 3) + "|"]
    for row in sorted(rows, key=lambda row: (-row["active"], row["recipe"] != "best", row["recipe"], row["settings"])):
        rivals = [r for r in rows if _key(r)[:2] == (row["active"], "best") and not r["settings"]]
        lines.append(_line(row, dense, rivals[0] if rivals else None))
    return "\n".join(lines)


def _line(row: Row, dense: Row, best: Row | None) -> str:
    cells = [f"{row['active']:.2f}", " ".join([f"`{row['recipe']}`", *row["settings"]]), f"{row['calibration tokens']:,}"]
    for title in JUDGED:
        own = _losses(row, title)
        cells.append(f"{np.exp((own - _losses(dense, title)[: len(own)]).mean()):.3f}")
        if best is None or best is row:
            cells.append("-")
            continue
        other = _losses(best, title)
        common = min(len(own), len(other))
        low, high = ratio_interval(other[:common], own[:common])
        cells.append(f"{low:.3f} to {high:.3f}")
    fractions = [row["texts"][title]["active"] for title in JUDGED]
    cells.append(", ".join("-" if value is None else f"{value:.3f}" for value in fractions))
    return "| " + " | ".join([*cells, str(row["seconds"]["cpu"]), row["commit"]]) + " |"


def _losses(row: Row, title: str) -> Floats:
    return np.array(row["texts"][title]["windows"], dtype=np.float64) / PREDICTED


def _key(row: Row) -> tuple[float, str, str, tuple[str, ...], int]:
    how = (row.get("aligned") or {}).get("how", "")
    return row["active"], row["recipe"], how, tuple(row["settings"]), row["calibration tokens"]


def main() -> int:
    print(tables(json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
