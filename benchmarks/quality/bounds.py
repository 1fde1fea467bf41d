"""What bounds a conversion: SmolLM2-135M converted, beside null models that share its experts or its budget.

PYTHONPATH=examples python -m benchmarks.quality.bounds --recipe best --active 0.5 [--tokens N] [--own] [--set ...] [--write]

Of each text perplexity / dense perplexity of: the conversion; the same experts under the best choice (oracle-routing), which
no router can know; a full-rank term in the place of what is idle (full-rank-compensation), above the budget; the best fixed
neurons (static-mask); experts of neurons at random (random-partition). docs/evaluating.md says how each is made. With
`--set cluster-neurons.experts=neurons` the best choice is that of single neurons.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import moeify
import real_models
from benchmarks.quality.measure import RESULTS, commit
from benchmarks.quality.texts import JUDGED, calibration, with_own_text
from benchmarks.rows import arguments, machine, show
from moeify.pipeline.recipe import parse_setting


def measured(recipe: str, active: float, tokens: int, judged: int, settings: list[str], own: bool) -> dict[str, Any]:
    """One row."""
    row: dict[str, Any] = {"benchmark": "bounds", "model": "SmolLM2-135M", "recipe": recipe, "active": active}
    row |= {"settings": settings, "calibration tokens": tokens, "own text": tokens // 2 if own else 0, "judged tokens": judged}
    row |= {"commit": commit(), **machine(), "texts": {}}
    with tempfile.TemporaryDirectory() as name:
        folder, source = Path(name), real_models.smollm2()
        moeify.convert(
            source, folder / "moe", recipe=recipe, active=active, tokens=tokens,
            calibrate=with_own_text(folder, tokens) if own else calibration(folder, tokens),
            settings=[parse_setting(text) for text in settings],
        )  # fmt: skip
        for title, text in JUDGED.items():
            found = moeify.evaluate(folder / "moe", text(folder), tokens=judged, dense=source, nulls=True)
            figures = {score.name: score.perplexity.value for score in found.scores if score.perplexity is not None}
            dense = figures.pop("dense")
            row["texts"][title] = {
                "dense": round(dense, 3),
                **{name: round(value / dense, 3) for name, value in figures.items()},
            }
    return row


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--recipe", default="best")
    parser.add_argument("--active", type=float, default=0.5)
    parser.add_argument("--tokens", type=int, default=16384, help="of calibration text")
    parser.add_argument("--judged", type=int, default=4096, help="tokens of each text, a tenth of them for fitting nulls")
    parser.add_argument("--set", action="append", default=[], metavar="PASS.OPTION=VALUE")
    parser.add_argument("--own", action="store_true", help="calibrate on text that the model wrote itself, too")
    given = parser.parse_args()
    row = measured(given.recipe, given.active, given.tokens, given.judged, given.set, given.own)
    show(row, given.write, RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
