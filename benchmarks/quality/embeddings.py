"""Cosine between the sentence embeddings of all-MiniLM-L6-v2 before and after a training-free conversion.

PYTHONPATH=examples python -m benchmarks.quality.embeddings --recipe best --active 0.5 [--write]
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import moeify
import real_models
from benchmarks.quality.measure import RESULTS, commit
from benchmarks.quality.texts import JUDGED, calibration
from benchmarks.rows import arguments, machine
from moeify.frontend.load_model import load_model
from moeify.measure.load import expert_load, whole_active_fraction

#: Texts of each kind, and the tokens of each that are read.
TEXTS, LENGTH = 200, 128


def measured(recipe: str, active: float, tokens: int) -> dict[str, Any]:
    """One row."""
    dense = load_model(real_models.minilm())
    assert dense.tokenizer is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        done = moeify.convert(real_models.minilm(), recipe=recipe, active=active, calibrate=calibration(folder), tokens=tokens)
        texts = {}
        for title, text in JUDGED.items():
            paragraphs = [p for p in text(folder).read_text("utf-8").split("\n") if len(p) > 100][:TEXTS]
            batch = dict(dense.tokenizer(paragraphs, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"))
            batch = {key: value for key, value in batch.items() if key in dense.example}
            before, after = (_embedded(model, batch) for model in (dense.model, done.model))
            cosine = torch.nn.functional.cosine_similarity(before, after)
            fraction = whole_active_fraction(expert_load(done.model, [batch])) or 0.0
            figures = {"cosine": float(cosine.mean()), "least cosine": float(cosine.min()), "active": fraction}
            texts[title] = {key: round(value, 4) for key, value in figures.items()}
    row = {"benchmark": "embeddings", "model": "all-MiniLM-L6-v2", "recipe": recipe, "active": active}
    return {**row, "calibration tokens": tokens, "texts": texts, "commit": commit(), **machine()}


@torch.no_grad()
def _embedded(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The mean over the tokens of each text, [texts, width]."""
    hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][:, :, None]
    pooled: Tensor = (hidden * mask).sum(1) / mask.sum(1)
    return pooled


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--recipe", default="best")
    parser.add_argument("--active", type=float, default=0.5)
    parser.add_argument("--tokens", type=int, default=16384, help="of calibration text")
    given = parser.parse_args()
    row = measured(given.recipe, given.active, given.tokens)
    print(json.dumps(row, indent=1))
    if given.write:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
