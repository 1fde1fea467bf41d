"""The table of benchmarks/quality/README.md, from its rows: perplexity / dense perplexity on the same tokens.

python -m benchmarks.quality.table
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.quality.texts import JUDGED

RESULTS = Path(__file__).parent / "results.jsonl"
Row = dict[str, Any]


def table(rows: Iterable[Row]) -> str:
    """Markdown; a row without the dense model on as many tokens is left out."""
    found = [row for row in rows if row["benchmark"] == "quality"]
    dense = {row["judged tokens"]: row for row in found if row["recipe"] == "dense"}
    lines = [
        "| recipe | settings | active: asked, "
        + ", ".join(JUDGED)
        + " | calibration, judged tokens | "
        + " | ".join(JUDGED)
        + " | commit |",
        "| --- | --- | --- | --- | " + "--- | " * len(JUDGED) + "--- |",
    ]
    judged = [row for row in found if row["recipe"] != "dense" and row["judged tokens"] in dense]
    judged.sort(key=lambda row: (-row["active"], row["recipe"]))
    return "\n".join([*lines, *(_line(row, dense[row["judged tokens"]]) for row in judged)])


def _line(row: Row, dense: Row) -> str:
    fractions = [row["active"], *(row["texts"][title]["active"] for title in JUDGED)]
    cells = [row["recipe"], "; ".join(row["settings"]), ", ".join(map(_fraction, fractions))]
    cells.append(f"{row['calibration tokens']}, {row['judged tokens']}")
    for title in JUDGED:
        after, before = (which["texts"][title]["perplexity"] for which in (row, dense))
        cells.append(f"{after / before:.3f} ({before:.2f} to {after:.2f})")
    return "| " + " | ".join([*cells, row["commit"]]) + " |"


def _fraction(value: float | None) -> str:
    """A layer that does not choose is not metered: its fraction is what was asked."""
    return "-" if value is None else f"{value:.3f}"


def main() -> int:
    print(table(json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
