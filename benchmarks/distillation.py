"""SmolLM2-135M carved into 16 experts a layer, before and after each is distilled from its dense FFN. Prints one row of JSON.

PYTHONPATH=examples python -m benchmarks.distillation [--recipe NAME] [--top-k K] [--steps N] [--prefix PREFIX] [--write]
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import moeify
import real_models
from benchmarks.rows import arguments, machine, show
from moeify.data.open_data import open_data
from moeify.frontend.load_model import load_model
from moeify.measure.divergence import divergence
from moeify.training.distillation import distill_layers


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--recipe", default="emoe")
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--prefix", default="converted")
    options = parser.parse_args()
    dense = load_model(real_models.smollm2())
    model = moeify.convert(real_models.smollm2(), recipe=options.recipe, top_k=options.top_k).model

    def windows(text: Any, tokens: int) -> list[Any]:
        return list(open_data(text, tokenizer=dense.tokenizer, example=dense.example, tokens=tokens, batch=2))

    others = windows(real_models.encyclopaedic_text(), 2048)
    before = divergence(dense.model, model, others)
    started = time.perf_counter()
    reports = distill_layers(
        model, dense.model, windows(real_models.technical_text(), options.tokens), steps=options.steps, prefix=options.prefix
    )
    row: dict[str, Any] = {
        "benchmark": "distillation", "recipe": options.recipe, "experts": 16, "top_k": options.top_k, "steps": options.steps,
        "tokens": options.tokens, "prefix": options.prefix, **machine(), "seconds": round(time.perf_counter() - started),
        "median held-out loss, before": statistics.median(report.before for report in reports),
        "median held-out loss, after": statistics.median(report.after for report in reports),
        "KL from dense, before": before.kl, "KL from dense, after": divergence(dense.model, model, others).kl,
    }  # fmt: skip
    show(row, options.write)


if __name__ == "__main__":
    main()
