"""A small language model: a Llama of a million parameters, trained from scratch on encyclopaedic text."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import real_models
from checkpointed_runs import Budget
from package_files import cached
from training_loop import Batch, Schedule, train


@dataclass(frozen=True)
class Pretraining:
    """Tokens of a window, windows of a batch; held_out: tokens to validate with, and as many to test with."""

    vocabulary: int = 2048
    hidden: int = 128
    layers: int = 4
    window: int = 128
    batch: int = 12
    held_out: int = 40_000
    steps: int = 1600
    rate: float = 4e-3


class Text:
    """The text as token ids: the front to train with, then validation, then test."""

    def __init__(self, setting: Pretraining) -> None:
        raw = real_models.encyclopaedic_text().read_text(encoding="utf-8")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=setting.vocabulary, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(raw[: len(raw) * 9 // 10].split("\n"), trainer)
        ids, n = torch.tensor(tokenizer.encode(raw).ids), setting.held_out
        self.setting = setting
        self.train, self.validation, self.test = ids[: -2 * n], ids[-2 * n : -n], ids[-n:]

    def batches(self, steps: int, seed: int) -> Iterator[Batch]:
        """Windows that begin where the seed says; ids int64 [batch, window]."""
        generator, window = torch.Generator().manual_seed(seed), self.setting.window
        for _ in range(steps):
            starts = torch.randint(len(self.train) - window, (self.setting.batch,), generator=generator).tolist()
            ids = torch.stack([self.train[start : start + window] for start in starts])
            yield {"input_ids": ids, "labels": ids}


def pretrained(text: Text, budget: Budget) -> Any:
    """The trained model. It is trained once; from then on it comes out of the cache."""
    setting = text.setting

    def write(folder: Path) -> None:
        model = new_model(setting)
        train(model, text.batches(setting.steps, 0), Schedule(setting.steps, setting.rate), 0, budget)
        model.save_pretrained(folder)

    digest = hashlib.sha256(json.dumps(asdict(setting)).encode()).hexdigest()[:12]
    return LlamaForCausalLM.from_pretrained(cached(f"small-language-model-{digest}", write))


def new_model(setting: Pretraining) -> Any:
    """Three times as many neurons as hidden values, four heads, tied embeddings."""
    config = LlamaConfig(
        vocab_size=setting.vocabulary, hidden_size=setting.hidden, intermediate_size=3 * setting.hidden,
        num_hidden_layers=setting.layers, num_attention_heads=4, max_position_embeddings=setting.window,
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


@torch.no_grad()
def perplexity(model: Any, ids: Tensor, window: int) -> float:
    """Over windows that do not overlap; the first token of each is given."""
    windows = ids[: len(ids) // window * window].view(-1, window)
    batches = [windows[i : i + 64] for i in range(0, len(windows), 64)]
    total = sum(float(model(input_ids=batch, labels=batch).loss) * len(batch) for batch in batches)
    return math.exp(total / len(windows))
