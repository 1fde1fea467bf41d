"""Perplexity of SmolLM2-135M after a conversion, at the measured active fraction.

PYTHONPATH=examples python -m benchmarks.quality.measure --recipe best --active 0.5 [--align steps=160] [--set ...] [--write]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import moeify
import real_models
from benchmarks.quality.texts import JUDGED, calibration, for_alignment, with_own_text
from benchmarks.rows import arguments, machine, show
from moeify.data.open_data import open_data
from moeify.frontend.load_model import load_model
from moeify.measure.evaluate import evaluate_model
from moeify.pipeline.layer_nulls import mean_errors
from moeify.pipeline.recipe import parse_setting

RESULTS = Path(__file__).parent / "results.jsonl"


def measured(
    recipe: str, active: float, tokens: int, judged: int, settings: list[str], align: str, own: bool
) -> dict[str, Any]:
    """One row: what was asked, what the conversion took, and the perplexities. recipe "dense": the model as it is. align: as
    of `moeify convert`, on all of the calibration text. own: calibrate on text that the model wrote, too, and align on more."""
    row: dict[str, Any] = {
        "benchmark": "quality",
        "model": "SmolLM2-135M",
        "recipe": Path(recipe).stem,
        "judged tokens": judged,
    }
    row |= {"commit": commit(), **machine()}  # of the code that runs, whatever is checked out at its end
    dense = load_model(real_models.smollm2())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = dense.model
        if recipe != "dense":
            started, wall = time.process_time(), time.perf_counter()
            done = moeify.convert(
                real_models.smollm2(), recipe=recipe, active=active, tokens=tokens,
                calibrate=with_own_text(folder, tokens) if own else calibration(folder, tokens),
                settings=[parse_setting(text) for text in settings],
                align=moeify.Alignment.parse(align) if align else None,
                align_on=for_alignment() if align and own else None,
            )  # fmt: skip
            row |= {
                "active": active,
                "settings": settings,
                "calibration tokens": tokens,
                "own text": tokens // 2 if own else 0,
                "seconds": {"cpu": round(time.process_time() - started), "wall": round(time.perf_counter() - wall)},
                "aligned": done.report.aligned and {"how": align, **done.report.aligned},
                "layers": [round(layer.active_fraction, 3) for layer in done.report.layers],
                "layer errors": {name: round(value, 4) for name, value in mean_errors(done.report.nulls.values()).items()},
            }
            model = done.model
        row["texts"] = {}
        for title, text in JUDGED.items():
            data = open_data(text(folder), tokenizer=dense.tokenizer, example=dense.example, tokens=judged)
            [score] = evaluate_model(model, data).scores
            assert score.perplexity is not None
            fraction = None if score.active_fraction is None else round(score.active_fraction, 4)
            losses = [round(total, 2) for total, _ in score.perplexity.windows]
            row["texts"][title] = {"perplexity": round(score.perplexity.value, 3), "active": fraction, "windows": losses}
    return row


def show_unless_void(row: dict[str, Any], active: float, write: bool) -> int:
    """Prints the row, and writes it where no text used more than 1 % above the budget; the exit code."""
    void = [title for title, scores in row["texts"].items() if (scores["active"] or 0) > active * 1.01]
    show(row, write and not void, RESULTS)
    if void:
        print(f"void: more than 1 % above the budget on {', '.join(void)}", file=sys.stderr)
    return int(bool(void))


def commit() -> str:
    """The commit that is checked out."""
    run = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--recipe", default="best", help="or dense: the model before any conversion")
    parser.add_argument("--active", type=float, default=0.5)
    parser.add_argument("--tokens", type=int, default=16384, help="of calibration text")
    parser.add_argument("--judged", type=int, default=20480, help="tokens of each text to judge on")
    parser.add_argument("--set", action="append", default=[], metavar="PASS.OPTION=VALUE")
    parser.add_argument("--own", action="store_true", help="calibrate on text that the model wrote itself, too")
    parser.add_argument("--align", default="", metavar="minutes=M|steps=N")
    given = parser.parse_args()
    row = measured(given.recipe, given.active, given.tokens, given.judged, given.set, given.align, given.own)
    return show_unless_void(row, given.active, given.write)


if __name__ == "__main__":
    sys.exit(main())
