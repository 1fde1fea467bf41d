"""Greedy texts: the single forward finds where two separate greedy texts part."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from measure.small_models import batches, gpt2, llama, logits_of
from moeify.measure.greedy import Greedy, greedy_agreement


def greedy_text(model: nn.Module, prompt: Tensor, limit: int) -> list[int]:
    """Token by token, each from a forward over everything before it."""
    text = prompt[None]
    for _ in range(limit):
        text = torch.cat((text, logits_of(model, {"input_ids": text})[:, -1].argmax(-1, keepdim=True)), dim=1)
    return text[0, len(prompt) :].tolist()


def moved(model: nn.Module, by: float) -> nn.Module:
    """The same model with slightly other weights."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("by", [0.01, 0.05])
def test_texts_part_where_two_written_texts_do(by: float) -> None:
    dense, other, data = llama(), moved(llama(), by), batches(3, rows=2)
    found = greedy_agreement(dense, other, data, prompts=5, prompt_tokens=6, limit=16)
    expected = []
    for row in torch.cat([batch["input_ids"] for batch in data if isinstance(batch, dict)])[:5]:
        mine, theirs = greedy_text(dense, row[:6], 16), greedy_text(other, row[:6], 16)
        expected.append(next((i for i, (a, b) in enumerate(zip(mine, theirs)) if a != b), 16))
    assert found == Greedy(5, 6, 16, tuple(expected), sum(expected) / 5, expected.count(16))
    assert min(expected) < 16


def test_a_model_writes_its_own_text() -> None:
    found = greedy_agreement(gpt2(), gpt2(), batches(1), prompt_tokens=4, limit=9)
    assert found == Greedy(2, 4, 9, (9, 9), 9.0, 2)


def test_texts_that_end_alike_do_not_diverge() -> None:
    dense, other, data = llama(), moved(llama(), 0.02), batches(4)
    plain = greedy_agreement(dense, other, data, prompt_tokens=6, limit=16)
    assert plain is not None
    rows = torch.cat([batch["input_ids"] for batch in data if isinstance(batch, dict)])
    row, agreed = next((row, agreed) for row, agreed in zip(rows, plain.tokens) if 0 < agreed < 16)
    end = greedy_text(dense, row[:6], agreed)[-1]
    ended = greedy_agreement(dense, other, [{"input_ids": row[None]}], prompt_tokens=6, limit=16, end=end)
    assert ended is not None
    assert ended.tokens == (16,)


def test_models_without_a_cache_or_names() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = llama()

        def forward(self, tokens: Tensor) -> Tensor:
            return logits_of(self.inner, {"input_ids": tokens})

    (batch,) = batches(1)
    assert isinstance(batch, dict)
    named = greedy_agreement(llama(), moved(llama(), 0.05), [batch], prompt_tokens=6, limit=8)
    bare = Bare()
    other = Bare()
    moved(other.inner, 0.05)
    assert greedy_agreement(bare, other, [(batch["input_ids"],)], prompt_tokens=6, limit=8) == named


def test_no_prompt_no_figure() -> None:
    assert greedy_agreement(llama(), llama(), batches(1, tokens=12), prompt_tokens=13) is None
    assert greedy_agreement(llama(), llama(), [(torch.ones(2, 3),)]) is None


def test_texts_stay_within_the_positions_of_the_model() -> None:
    found = greedy_agreement(llama(), llama(), batches(1, tokens=120), prompt_tokens=110)
    assert found is not None
    assert found.limit == 128 - 110
