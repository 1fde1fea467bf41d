"""A small translation model: a Marian of a million parameters, English to French, and the short verses it learns from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sacrebleu
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import MarianConfig, MarianMTModel

from real_data import Pair, verses
from training_loop import Batch

PAD, END = 0, 1


@dataclass(frozen=True)
class Translator:
    """tokens: at most, of a verse; held_out: verses to validate with, and as many to test with; batch: verses."""

    vocabulary: int = 2000
    hidden: int = 128
    layers: int = 2
    tokens: int = 32
    held_out: int = 300
    batch: int = 64


class Verses:
    """Pairs that are short enough, none of them twice: to train, to validate, and to test with."""

    def __init__(self, setting: Translator) -> None:
        pairs = list({pair.source: pair for pair in verses()}.values())
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
        pairs, n = [pairs[i] for i in order], setting.held_out
        self.setting = setting
        self.tokenizer = tokenizer(pairs[5 * n :], setting.vocabulary)  # 2 of 5 verses or more are short: none that is held out
        short = [pair for pair in pairs if max(len(self.ids(pair.source)), len(self.ids(pair.target))) <= setting.tokens]
        self.validation, self.test, self.train = short[:n], short[n : 2 * n], short[2 * n :]

    def ids(self, text: str) -> list[int]:
        return [*self.tokenizer.encode(text).ids, END]

    def batch(self, pairs: Sequence[Pair]) -> Batch:
        """input_ids, attention_mask [pairs, source tokens], labels [pairs, target tokens]."""
        source = padded([self.ids(pair.source) for pair in pairs], PAD)
        labels = padded([self.ids(pair.target) for pair in pairs], -100)
        return {"input_ids": source, "attention_mask": (source != PAD).long(), "labels": labels}

    def batches(self, steps: int, seed: int) -> Iterator[Batch]:
        """All pairs in the order that the seed draws, again and again; those of like length share a batch."""
        generator, size = torch.Generator().manual_seed(seed), self.setting.batch
        while steps > 0:
            order = torch.randperm(len(self.train), generator=generator).tolist()
            alike = sorted((self.train[i] for i in order), key=lambda pair: len(pair.target) // 16)
            starts = torch.randperm(len(alike) // size, generator=generator).tolist()
            for start in starts[:steps]:
                yield self.batch(alike[start * size : (start + 1) * size])
            steps -= len(starts)


def tokenizer(pairs: Sequence[Pair], vocabulary: int) -> Tokenizer:
    """Byte-pair encoding of both languages, trained on these pairs."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False)
    made.train_from_iterator((text for pair in pairs for text in (pair.source, pair.target)), trainer)
    return made


def padded(rows: Sequence[list[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def new_model(setting: Translator, seed: int) -> Any:
    """Untrained; equal seeds give equal weights."""
    hidden, layers = setting.hidden, setting.layers
    config = MarianConfig(
        vocab_size=setting.vocabulary, d_model=hidden, encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=4 * hidden, decoder_ffn_dim=4 * hidden, max_position_embeddings=64,
        activation_function="relu", scale_embedding=True, pad_token_id=PAD, eos_token_id=END, decoder_start_token_id=PAD,
        forced_eos_token_id=None, bos_token_id=None, num_beams=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MarianMTModel(config)


@torch.no_grad()
def quality(model: Any, data: Verses, pairs: Sequence[Pair]) -> dict[str, float]:
    """chrF and BLEU (sacrebleu's defaults) of greedy translations."""
    pairs = sorted(pairs, key=lambda pair: len(pair.source))
    translated: list[str] = []
    for start in range(0, len(pairs), 50):
        inputs = data.batch(pairs[start : start + 50])
        del inputs["labels"]
        ids = model.generate(**inputs, max_new_tokens=40, do_sample=False, num_beams=1)
        translated += (data.tokenizer.decode(row, skip_special_tokens=True) for row in ids.tolist())
    references = [[pair.target for pair in pairs]]
    chrf, bleu = sacrebleu.corpus_chrf(translated, references), sacrebleu.corpus_bleu(translated, references)
    return {"chrF": chrf.score, "BLEU": bleu.score}
