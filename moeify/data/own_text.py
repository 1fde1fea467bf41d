"""Text that a causal language model writes itself: rows of tokens, sampled from what it says of the next one.

Source: LLM-QAT (Liu et al. 2023, arXiv:2305.17888), section 3.1: data-free, the first token is drawn uniformly from the
vocabulary, and the model goes on by its own distribution. There the three to five tokens behind the first are the likeliest
ones; here all are sampled, at a temperature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from moeify.data.text_encoder import TextEncoder
from moeify.errors import InputError

#: Rows that are written at once, at most, and the bytes that their keys and values may take.
ROWS, CACHE = 64, 4 << 30


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What is known of a model's tokens. first: the ids that a row may begin with, [candidates]; no special ones. known: ids
    are below it. ends: the end-of-text tokens. prefix: what the tokenizer puts before a text."""

    first: Tensor
    known: int
    ends: frozenset[int]
    prefix: tuple[int, ...]

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> Vocabulary:
        """That of a model of transformers. Raises InputError for something that does not work like a tokenizer."""
        encoder = TextEncoder.of(tokenizer)
        known = min(len(tokenizer), model.get_output_embeddings().weight.shape[0])
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
        said = (tokenizer, model.config.get_text_config(), getattr(model, "generation_config", None))
        ends = {i for owner in said for i in _numbers(getattr(owner, "eos_token_id", None))}
        first = torch.tensor([i for i in range(known) if i not in special | ends])
        return cls(first, known, frozenset(ends), encoder.prefix)


@dataclass(frozen=True)
class Row:
    """ids: of the row, without what the tokenizer puts before it and without the end-of-text token. ended: by that token."""

    ids: tuple[int, ...]
    ended: bool


@dataclass(frozen=True, eq=False)
class Sampler:
    """Draws tokens. temperature: above 0; 1 is the model's own distribution."""

    temperature: float
    generator: torch.Generator

    def first(self, candidates: Tensor, rows: int) -> Tensor:
        """[rows, 1] of [candidates], each as likely."""
        return candidates[torch.randint(len(candidates), (rows, 1), generator=self.generator)]

    def next(self, logits: Tensor) -> Tensor:
        """[rows, 1] by logits [rows, vocabulary]. Raises InputError where these are not finite."""
        sums = torch.softmax(logits.float() / self.temperature, -1).cumsum(-1)
        whole = sums[:, -1:]
        if not bool(whole.isfinite().all()):
            raise InputError("the model says NaN or infinite values of the next token: it cannot write; look at its weights")
        drawn = torch.rand(len(logits), 1, generator=self.generator).to(whole.device) * whole
        return torch.searchsorted(sums, drawn, right=True).clamp_(max=logits.shape[-1] - 1)  # six times as fast as multinomial


def own_rows(
    model: nn.Module, words: Vocabulary, sampler: Sampler, *, tokens: int, length: int, heard: Callable[[int], None]
) -> Iterator[Row]:
    """Rows of up to `length` tokens until there are `tokens` of them (or fewer than ROWS more); the last may be shorter.

    heard: is told how many there are, `tokens` at most. Raises InputError for a model whose logits are not finite.
    """
    written, count, most = 0, 0, rows_at_once(model, length)
    while written < tokens:
        mean = written / count if count else length
        first = sampler.first(words.first, min(most, math.ceil((tokens - written) / mean)))
        for row in _batch(model, words, sampler, first, length, range(written, tokens), heard):
            written, count = written + len(row.ids), count + 1
            yield row


def rows_at_once(model: Any, length: int) -> int:
    """How many rows of so many tokens: ROWS, or fewer by what the config says of keys and values."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 1
    size = getattr(config, "head_dim", None) or getattr(config, "hidden_size", heads) // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    token: int = 2 * getattr(config, "num_hidden_layers", 1) * shared * size * next(model.parameters()).element_size()
    return max(1, min(ROWS, CACHE // max(1, token * length)))


@torch.inference_mode()
def _batch(
    model: nn.Module,
    words: Vocabulary,
    sampler: Sampler,
    first: Tensor,
    length: int,
    wanted: range,
    heard: Callable[[int], None],
) -> list[Row]:
    """Rows that begin with `first`, [rows, 1], until all are ended or `length` tokens long, or there are enough.

    wanted: from those that there are before to those that there shall be."""
    device = next(model.parameters()).device
    takes = {"use_cache": True} if "use_cache" in signature(model.forward).parameters else {}
    ends = torch.tensor(sorted(words.ends), dtype=torch.int64)
    prefix = torch.tensor(words.prefix, dtype=torch.int64).expand(len(first), -1)
    ids, fed = [first], torch.cat((prefix, first), 1).to(device)
    cache = dict[str, Any]()
    going, lengths = torch.ones(len(first), dtype=torch.bool), torch.ones(len(first), dtype=torch.int64)
    while len(ids) < length and bool(going.any()) and int(lengths.sum()) < len(wanted):
        said = model(input_ids=fed, **takes, **cache)
        token = sampler.next(said.logits[:, -1, : words.known])
        past = said.get("past_key_values")
        cache = {} if past is None else {"past_key_values": past}
        fed = torch.cat((fed, token), 1) if past is None else token
        ids.append(token.cpu())
        going &= ~torch.isin(ids[-1][:, 0], ends)
        lengths += going
        heard(min(wanted.start + int(lengths.sum()), wanted.stop))
    found = torch.cat(ids, 1).tolist()
    return [Row(tuple(row[:kept]), not on) for row, kept, on in zip(found, lengths.tolist(), going.tolist())]


def _numbers(value: Any) -> tuple[int, ...]:
    """The integers of a number or a list of them."""
    if isinstance(value, list | tuple):
        return tuple(number for part in value for number in _numbers(part))
    return (value,) if isinstance(value, int) else ()
