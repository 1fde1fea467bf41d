"""Calibration text that the dense model writes itself."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from moeify.api.arguments import device_of
from moeify.errors import InputError, UsageError
from moeify.pipeline.context import Progress, no_progress

if TYPE_CHECKING:
    from moeify.data.own_text import Row
    from moeify.frontend.loaded import LoadedModel

_SUFFIXES = (".jsonl", ".ndjson")
_INSTEAD = "calibrate on text of your own instead (--calibrate FILE)"
#: What is no causal language model of transformers, by what `sniff` calls it.
_OTHERS = {
    "torch": "a file of torch.save", "pickle": "a pickle", "safetensors": "a file of weights alone", "onnx": "an ONNX file",
    "exported-program": "an archive of torch.export", "torchscript": "a TorchScript archive",
}  # fmt: skip


@dataclass(frozen=True)
class OwnText:
    """output: the .jsonl file, a text a line. rows, tokens: how many the model wrote; ended: rows that end with its end-of-text
    token, which is not written. texts: lines of the file, a row each, or more that rows were cut to. dtype: in which the model
    computed. window: tokens of a row at most, with the special ones that the tokenizer puts round a text."""

    output: Path
    rows: int
    tokens: int
    ended: int
    texts: int
    temperature: float
    window: int
    seed: int
    dtype: str

    def __str__(self) -> str:
        cut = "" if self.texts == self.rows else f", cut to {self.texts:,} short texts"
        return f"{self.rows:,} rows of {self.tokens:,} tokens, {self.ended:,} of them to their end{cut}: {self.output}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "output": str(self.output)}


def write_text(
    model: str | Path,
    output: str | Path,
    *,
    tokens: int = 16384,
    temperature: float = 0.8,
    window: int = 512,
    seed: int = 0,
    short: bool = False,
    device: str = "cpu",
    force: bool = False,
    progress: Progress = no_progress,
) -> OwnText:
    """Lets a causal language model write text to calibrate it on, beside text of yours or where there is none.

    The method is that of LLM-QAT (Liu et al. 2023, arXiv:2305.17888, section 3.1): the first token of a row is any but a
    special one, each as likely, and the model goes on by its own distribution, until it says an end-of-text token or the row is
    full. All tokens behind the first are drawn at `temperature`; the paper takes the likeliest for the first three to five.

    model: a Hugging Face folder, an adapter's, or a GGUF file, with a tokenizer. output: a .jsonl file, {"text": ...} a line,
    which appears whole or not at all; force: replaces one. tokens: rows are written until there are so many. window: tokens of
    a row, special ones included; fewer where the model or its tokenizer has fewer positions. short: rows are cut to texts as
    sentence encoders, which write none, meet them: half of the paragraphs as they are, half in pieces of 1 to 32 words. The
    same seed gives the same file on the same machine. The model computes in bfloat16 where the processor has instructions for
    it, else in float32.

    Raises UsageError for an option out of bounds, InputError for a model that cannot write text, OutputError.
    """
    target, kind = Path(output), device_of(device)
    _check(model, target, tokens, temperature, window, seed, force=force)
    from moeify.data.own_text import Sampler, Vocabulary, own_rows
    from moeify.data.text_encoder import TextEncoder
    from moeify.export.atomic import whole_file
    from moeify.frontend.one_token_attention import one_token_attention

    progress("loading", 0, None)
    loaded = _opened(Path(model).expanduser(), kind)
    words = Vocabulary.of(loaded.model, loaded.tokenizer)
    encoder = TextEncoder.of(loaded.tokenizer)
    room = min(window, encoder.longest, _positions(loaded.model))
    sampler = Sampler(temperature, torch.Generator().manual_seed(seed))
    rows = own_rows(
        loaded.model, words, sampler, tokens=tokens, length=encoder.content(room),
        heard=lambda done: progress("writing text", done, tokens),
    )  # fmt: skip
    with whole_file(target, force) as part, one_token_attention():
        written = _put(part, rows, loaded.tokenizer, random.Random(seed) if short else None)
    dtype = str(next(loaded.model.parameters()).dtype).removeprefix("torch.")
    return OwnText(target, *written, temperature=temperature, window=room, seed=seed, dtype=dtype)


def _check(
    model: str | Path, output: Path, tokens: int, temperature: float, window: int, seed: int, *, force: bool
) -> None:  # fmt: skip
    """What can be told before anything is read of the model."""
    from moeify.data.text_encoder import SHORTEST
    from moeify.export.atomic import check_target
    from moeify.frontend.sniff import sniff

    for name, value, least in (("tokens", tokens, SHORTEST), ("window", window, SHORTEST), ("seed", seed, 0)):
        if value < least:
            raise UsageError(f"{name} is {value}: it must be at least {least}")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise UsageError(f"temperature is {temperature}: choose a number above 0, such as 0.8")
    if output.suffix not in _SUFFIXES:
        raise UsageError(f"{output}: holds an object a line: choose a name that ends in {_SUFFIXES[0]}")
    if isinstance(model, nn.Module):
        raise InputError(
            f"{type(model).__name__}: a module in memory brings no tokenizer, which text needs: save both as a Hugging Face "
            f"folder and give that, or {_INSTEAD}"
        )
    path = Path(model).expanduser()
    if (kind := sniff(path)) in _OTHERS:
        raise InputError(
            f"{path}: is {_OTHERS[kind]}; a Hugging Face folder or GGUF file of a causal language model writes text: give one, "
            f"or {_INSTEAD}"
        )
    check_target(output, force=force)


def _opened(path: Path, device: str) -> LoadedModel:
    """Raises InputError for a model that cannot write text."""
    from moeify.frontend.load_model import load_model
    from moeify.frontend.writes_text import writes_text
    from moeify.training.product_precision import quick_bfloat16

    half = quick_bfloat16(torch.device(device).type)
    loaded = load_model(path, dtype=torch.bfloat16 if half else torch.float32, device=device)
    if not writes_text(loaded.model):
        raise InputError(
            f"{path}: {type(loaded.model).__name__} is no causal language model, which alone writes text: {_INSTEAD}, "
            "or on what a small language model writes (moeify write --short)"
        )
    if loaded.tokenizer is None:
        raise InputError(
            f"{path}: brings no tokenizer, so what the model says is no text; put its files (tokenizer.json, ...) into the "
            f"folder, or {_INSTEAD}"
        )
    return loaded


def _positions(model: Any) -> int:
    """Tokens that the model takes at most, as its config says."""
    config = model.config.get_text_config()
    found = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions"))
    return next((number for number in found if isinstance(number, int) and number > 0), 1 << 62)


def _put(path: Path, rows: Iterator[Row], tokenizer: Any, cut: random.Random | None) -> tuple[int, int, int, int]:
    """Writes the rows, or the short texts that they are cut to; returns how many rows there are, their tokens, how many have an
    end, and how many texts. Special tokens inside of a row stay, as the tokenizer reads them again."""
    from moeify.data.short_texts import short_texts

    count = tokens = ended = lines = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            text = tokenizer.decode(row.ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            texts = [text] if cut is None else list(short_texts(text, cut))
            file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
            count, tokens, ended, lines = count + 1, tokens + len(row.ids), ended + row.ended, lines + len(texts)
    return count, tokens, ended, lines
