"""SmolLM2-135M carved into 16 experts a layer, before and after each is distilled from its dense FFN. Prints one row of JSON.

PYTHONPATH=examples python -m benchmarks.distillation [--recipe NAME] [--top-k K] [--steps N] [--prefix PREFIX] [--write]
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import moeify
import real_models
from benchmarks.rows import arguments, machine, show
from benchmarks.smollm2 import quality
from moeify.data.open_data import open_data
from moeify.export.folder import load_folder
from moeify.frontend.load_model import load_model
from moeify.training.distillation import distill_layers


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--recipe", default="emoe")
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--prefix", default="converted")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        first, second = Path(scratch) / "moe", Path(scratch) / "distilled"
        moeify.convert(real_models.smollm2(), first, recipe=options.recipe, top_k=options.top_k)
        found, dense = load_folder(first), load_model(real_models.smollm2())
        text = open_data(
            real_models.technical_text(), tokenizer=found.tokenizer, example=dense.example, tokens=options.tokens, batch=2
        )
        started = time.perf_counter()
        reports = distill_layers(found.model, dense.model, text, steps=options.steps, prefix=options.prefix)
        seconds = round(time.perf_counter() - started)
        moeify.resave(found.model, first, second)
        row: dict[str, Any] = {
            "benchmark": "distillation", "recipe": options.recipe, "experts": 16, "top_k": options.top_k,
            "steps": options.steps, "tokens": options.tokens, "prefix": options.prefix, **machine(), "seconds": seconds,
            "median held-out loss, before": statistics.median(report.before for report in reports),
            "median held-out loss, after": statistics.median(report.after for report in reports),
            "before": quality(first), "after": quality(second),
        }  # fmt: skip
    show(row, options.write)


if __name__ == "__main__":
    main()
