"""Sentence embeddings of all-MiniLM-L6-v2 before and after a conversion: their cosine, and what either says of words.

PYTHONPATH=examples python -m benchmarks.quality.embeddings --active 0.5 [--own] [--align minutes=10] [--set ...] [--write]

"SimLex-999": Spearman's correlation of the cosine of two words' embeddings with how alike people find the words.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

import moeify
import real_models
from benchmarks.quality.measure import commit, show_unless_void
from benchmarks.quality.texts import JUDGED, for_aligned_embeddings, for_embeddings
from benchmarks.rows import arguments, machine
from moeify.frontend.load_model import load_model
from moeify.frontend.loaded import LoadedModel
from moeify.measure.load import expert_load, whole_active_fraction
from moeify.pipeline.recipe import parse_setting

#: Texts of each kind, and the tokens of each that are read.
TEXTS, LENGTH = 200, 128


def measured(recipe: str, active: float, tokens: int, settings: list[str], align: str, own: bool) -> dict[str, Any]:
    """One row. own: calibrate on text that a language model wrote, too, and align on more of it."""
    dense = load_model(real_models.minilm())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        done = moeify.convert(
            real_models.minilm(), recipe=recipe, active=active, calibrate=for_embeddings(folder, own), tokens=tokens,
            settings=[parse_setting(text) for text in settings],
            align=moeify.Alignment.parse(align) if align else None,
            align_on=for_aligned_embeddings(folder) if align and own else None,
        )  # fmt: skip
        texts = {}
        for title, text in JUDGED.items():
            batch = _batch(dense, paragraphs(text(folder).read_text("utf-8"))[:TEXTS])
            before, after = (_embedded(model, batch) for model in (dense.model, done.model))
            cosine = torch.nn.functional.cosine_similarity(before, after)
            fraction = whole_active_fraction(expert_load(done.model, [batch])) or 0.0
            figures = {"cosine": float(cosine.mean()), "least cosine": float(cosine.min()), "active": fraction}
            texts[title] = {key: round(value, 4) for key, value in figures.items()}
    row = {"benchmark": "embeddings", "model": "all-MiniLM-L6-v2", "recipe": recipe, "active": active}
    row |= {"settings": settings, "calibration tokens": tokens, "own text": tokens // 2 if own else 0}
    row |= {"layers": [round(layer.active_fraction, 3) for layer in done.report.layers]}
    row |= {"aligned": done.report.aligned and {"how": align, **done.report.aligned}}
    words = {"before": _word_similarity(dense.model, dense), "after": _word_similarity(done.model, dense)}
    return {**row, "texts": texts, "SimLex-999": words, "commit": commit(), **machine()}


def paragraphs(text: str) -> list[str]:
    """Of more than 100 characters: lines, and of wrapped text what stands between blank ones."""
    found = list[str]()
    for block in text.split("\n\n"):
        lines = block.split("\n")
        wrapped = max(map(len, lines)) <= 100
        found += [" ".join(block.split())] if wrapped else lines
    return [paragraph for paragraph in found if len(paragraph) > 100]


def _batch(dense: LoadedModel, texts: list[str]) -> dict[str, Tensor]:
    assert dense.tokenizer is not None
    found = dict(dense.tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"))
    return {key: value for key, value in found.items() if key in dense.example}


def _word_similarity(model: nn.Module, dense: LoadedModel) -> float:
    lines = [line.split("\t") for line in real_models.word_similarity().read_text("utf-8").splitlines() if line[:1] not in "#"]
    left, right = (_embedded(model, _batch(dense, [line[place] for line in lines])) for place in (0, 1))
    cosine = torch.nn.functional.cosine_similarity(left, right)
    return round(float(stats.spearmanr(cosine.numpy(), [float(line[2]) for line in lines]).statistic), 4)


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
    parser.add_argument("--set", action="append", default=[], metavar="PASS.OPTION=VALUE")
    parser.add_argument("--align", default="", metavar="minutes=M|steps=N")
    parser.add_argument("--own", action="store_true", help="calibrate on text that a language model wrote, too")
    given = parser.parse_args()
    row = measured(given.recipe, given.active, given.tokens, given.set, given.align, given.own)
    return show_unless_void(row, given.active, given.write)


if __name__ == "__main__":
    sys.exit(main())
