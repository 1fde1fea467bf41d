"""Rows that a model writes itself: where they begin, where they end, and how many there are."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

import zoo_huggingface
from data.small_tokenizers import byte_level
from moeify.data.own_text import Row, Sampler, Vocabulary, own_rows, rows_at_once
from moeify.errors import InputError
from moeify.frontend.one_token_attention import one_token_attention

END, SIZE = 9, 30
WORDS = Vocabulary(torch.arange(END), SIZE, frozenset({END}), (20, 21))


class Counting(nn.Module):
    """Says that the next token is the one after this one. It keeps no cache, and is fed whole rows."""

    def __init__(self, other: float = -1e9) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))
        self.other, self.fed = other, list[Tensor]()
        config: Any = SimpleNamespace(hidden_size=8, num_attention_heads=2, num_hidden_layers=2)
        config.get_text_config = lambda: config
        self.config = config

    def forward(self, input_ids: Tensor) -> CausalLMOutputWithPast:
        self.fed.append(input_ids)
        logits = torch.full((*input_ids.shape, SIZE + 2), self.other)
        return CausalLMOutputWithPast(logits=logits.scatter(2, input_ids[..., None] + 1, 0.0))


def sampler(seed: int = 0, temperature: float = 1.0) -> Sampler:
    return Sampler(temperature, torch.Generator().manual_seed(seed))


def written(model: nn.Module, words: Vocabulary = WORDS, **options: Any) -> list[Row]:
    chosen: dict[str, Any] = {"sampler": sampler(), "tokens": 100, "length": 12, "heard": lambda _: None} | options
    return list(own_rows(model, words, **chosen))


def test_rows_end_at_the_end_of_text_token_which_is_not_kept() -> None:
    model, told = Counting(), list[int]()
    rows = written(model, heard=told.append)
    assert all(row.ids == tuple(range(row.ids[0], row.ids[-1] + 1)) for row in rows)
    assert all(row.ids[-1] == END - 1 for row in rows if row.ended)
    assert all(row.ended for row in rows[:9]), "the last ones stop where there are enough tokens"
    assert len({row.ids[0] for row in rows}) > 3
    total = sum(len(row.ids) for row in rows)
    assert 100 <= total < 100 + 64
    assert told == sorted(told)
    assert told[-1] == 100
    assert model.fed[0][:, :2].tolist() == [[20, 21]] * len(model.fed[0]), "what the tokenizer puts before a text"


def test_rows_without_an_end_have_the_length_that_is_asked_for() -> None:
    words = Vocabulary(torch.arange(5), SIZE, frozenset(), ())
    rows = written(Counting(), words, tokens=48)
    assert [len(row.ids) for row in rows] == [12] * 4
    assert not any(row.ended for row in rows)


def test_tokens_that_the_tokenizer_does_not_know_are_never_drawn() -> None:
    rows = written(Counting(other=0.0), Vocabulary(torch.arange(5), 6, frozenset(), ()), tokens=600)
    assert {token for row in rows for token in row.ids} == set(range(6))


def test_a_seed_is_a_text_and_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    one, again, other = (written(Counting(other=0.0), sampler=sampler(seed)) for seed in (1, 1, 2))
    assert one == again != other
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_logits_at_the_temperature(temperature: float) -> None:
    logits = torch.tensor([0.0, 1.0, -math.inf, 2.0])
    found = sampler(3, temperature).next(logits.expand(20_000, 4))
    shares = torch.bincount(found[:, 0], minlength=4) / 20_000
    assert torch.allclose(shares, torch.softmax(logits / temperature, 0), atol=0.015)  # four standard errors
    assert shares[2] == 0


def test_a_model_that_says_nan_is_refused() -> None:
    with pytest.raises(InputError, match="the model says NaN or infinite values of the next token"):
        written(Counting(other=math.nan))


def test_special_tokens_begin_no_row() -> None:
    tokenizer = byte_level()
    model: Any = zoo_huggingface.build("llama")
    words = Vocabulary.of(model, tokenizer)
    assert words.ends >= {tokenizer.eos_token_id}
    assert not set(words.first.tolist()) & (set(tokenizer.all_special_ids) | words.ends)
    assert words.known == min(len(tokenizer), model.config.vocab_size)
    assert words.prefix == ()


def test_fewer_rows_at_once_where_keys_and_values_are_large() -> None:
    model = Counting()
    assert rows_at_once(model, 512) == 64
    model.config.num_hidden_layers, model.config.hidden_size = 32, 4096
    assert rows_at_once(model, 512) == (4 << 30) // (2 * 32 * 4096 * 4 * 512)
    assert rows_at_once(model, 1 << 20) == 1


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "mistral", "qwen3", "bloom", "mamba"])
def test_the_same_rows_with_and_without_the_quick_attention(name: str) -> None:
    """And those that the model says when it reads them from their beginning."""
    model: Any = zoo_huggingface.build(name).eval()
    words = Vocabulary(torch.arange(5), model.get_output_embeddings().weight.shape[0], frozenset({3}), (2,))
    plain = written(model, words, tokens=60)
    with one_token_attention():
        assert written(model, words, tokens=60) == plain
    draws = sampler()
    ids = torch.cat((torch.full((5, 1), 2), draws.first(words.first, 5)), 1)
    with torch.no_grad():
        for _ in range(11):
            ids = torch.cat((ids, draws.next(model(input_ids=ids).logits[:, -1])), 1)
    begun = plain[:5]  # a batch; another follows where rows end early
    assert [list(row.ids) for row in begun] == [row[1 : 1 + len(p.ids)] for row, p in zip(ids.tolist(), begun, strict=True)]
