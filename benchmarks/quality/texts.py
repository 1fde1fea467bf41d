"""Texts to calibrate and to judge a conversion on; nothing is in two of them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import moeify
import real_models
from moeify.data.short_texts import short_texts
from package_files import cached


def calibration(folder: Path, tokens: int = 65_536) -> Path:
    """Every second article of the encyclopaedia, its first 6,000 characters, so that many subjects come early, which makes
    56,377 tokens of SmolLM2; whole where more than 65,536 are asked for (some 230,000)."""
    length = 6000 if tokens <= 65_536 else None
    return _written(folder / "calibration.txt", [article[:length] for article in _articles()[1::2]])


#: Characters of the encyclopaedia in 32,768 tokens.
_HALF = 147_000


def with_own_text(folder: Path, tokens: int = 65_536) -> list[Path]:
    """Half of the tokens from the same, of which 131,072 leave nothing over (56,377), and half that the model itself wrote."""
    text = calibration(folder).read_text("utf-8")[: _HALF * tokens // 65_536]
    return [_written(folder / "calibration-cut.txt", [text]), own_text(tokens // 2)]


def own_text(tokens: int = 32_768) -> Path:
    """What SmolLM2 itself wrote, by `moeify write`."""
    name = "own-text.jsonl"

    def write(folder: Path) -> None:
        moeify.write_text(real_models.smollm2(), folder / name, tokens=tokens)

    return cached(f"smollm2-own-text-{tokens}", write) / name


def for_alignment() -> list[Path]:
    """More that it wrote, 114,688 tokens, for an alignment alone."""
    seeds = (1, 2)

    def write(folder: Path) -> None:
        for seed in seeds:
            moeify.write_text(real_models.smollm2(), folder / f"{seed}.jsonl", tokens=57_344, seed=seed)

    folder = cached("smollm2-text-for-alignment", write)
    return [folder / f"{seed}.jsonl" for seed in seeds]


def for_embeddings(folder: Path, own: bool = False) -> list[Path]:
    """The calibration text cut as `moeify write --short` does, to paragraphs and pieces of 1 to 32 words. own: and text that a
    language model wrote, SmolLM2, since an encoder writes none."""
    articles = calibration(folder).read_text("utf-8").split("\n\n")
    found = [_short_texts(folder / "short.jsonl", articles)]
    return [*found, _short_texts(folder / "own-short.jsonl", _texts(own_text(65_536)))] if own else found


def for_aligned_embeddings(folder: Path) -> list[Path]:
    """What it wrote for an alignment, cut alike."""
    return [_short_texts(folder / "more-short.jsonl", [text for path in for_alignment() for text in _texts(path)])]


def same_kind(folder: Path) -> Path:
    """The other articles."""
    return _written(folder / "same-kind.txt", [article[:6000] for article in _articles()[::2]])


def other_domain(folder: Path) -> Path:
    """The topics of Python's own help."""
    return real_models.technical_text()


#: What a conversion is judged on.
JUDGED = {"same kind": same_kind, "other domain": other_domain}


def _articles() -> list[str]:
    text = real_models.encyclopaedic_text().read_text("utf-8")
    return [article for article in text.split("\n\n") if len(article) > 500]


def _texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()]


def _short_texts(path: Path, texts: list[str]) -> Path:
    draw = random.Random(0)
    return _documents(path, [short for text in texts for short in short_texts(text, draw)])


def _documents(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return path


def _written(path: Path, documents: list[str]) -> Path:
    path.write_text("\n\n".join(documents) + "\n", "utf-8")
    return path
