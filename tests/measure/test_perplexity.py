"""Perplexity against NumPy in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from measure.small_models import VOCABULARY, batches, bert, gpt2, llama, logits_of, masked_bert
from moeify.errors import ConversionError, InputError
from moeify.ir.model_graph import Batch
from moeify.measure.outputs import is_causal_language_model
from moeify.measure.perplexity import PerplexitySum, perplexity


def losses(logits: Tensor, ids: Tensor) -> list[list[float]]:
    """The negative log-likelihood of each next token, a list for each row."""
    z = logits.double().numpy()
    log_p = z - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)) - z.max(-1, keepdims=True)
    return [[-log_p[row, t, int(ids[row, t + 1])] for t in range(ids.shape[1] - 1)] for row in range(ids.shape[0])]


@pytest.mark.parametrize("make", [llama, gpt2])
def test_perplexity_weighs_tokens_alike(make: Callable[[], nn.Module]) -> None:
    model = make()
    data = [*batches(2, rows=3, tokens=20), *batches(1, rows=1, tokens=5)]
    windows = [row for batch in data for row in losses(logits_of(model, batch), batch["input_ids"])]  # type: ignore[call-overload]  # dicts
    every = np.concatenate(windows)
    found = perplexity(model, data)
    assert found.tokens == len(every) == 6 * 19 + 4
    assert found.nll == pytest.approx(every.mean(), rel=1e-9)
    assert found.value == pytest.approx(math.exp(every.mean()), rel=1e-9)
    residuals = np.array([sum(w) - every.mean() * len(w) for w in windows])
    error = math.exp(every.mean()) * math.sqrt(7 / 6 * (residuals**2).sum()) / len(every)
    assert found.standard_error == pytest.approx(error, rel=1e-6)


def test_long_windows_are_summed_in_chunks() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 9, (1, 700), generator=generator)
    logits = torch.randn(1, 700, 9, generator=generator)
    total = PerplexitySum()
    total.add(logits, {"input_ids": ids})
    assert total.result().nll == pytest.approx(np.mean(losses(logits, ids)), rel=1e-9)
    assert total.result().standard_error is None


def test_uniform_logits_give_the_size_of_the_vocabulary() -> None:
    total = PerplexitySum()
    total.add(torch.zeros(2, 5, 17), {"input_ids": torch.arange(10).reshape(2, 5)})
    assert total.result().value == pytest.approx(17)
    assert total.result().standard_error == pytest.approx(0, abs=1e-12)


def test_hidden_tokens_are_neither_predicted_nor_counted() -> None:
    model, data = llama(), batches(1, rows=2, tokens=9)
    ids = data[0]["input_ids"]  # type: ignore[call-overload]  # a dict
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    batch: Batch = {"input_ids": ids, "attention_mask": mask}
    first, second = losses(logits_of(model, batch), ids)
    found = perplexity(model, [batch])
    assert found.tokens == 8 + 5
    assert found.nll == pytest.approx(np.mean(first + second[:5]), rel=1e-9)


def test_the_training_flags_come_back() -> None:
    model = llama().train()
    model.get_submodule("model.layers.0").eval()
    flags = [module.training for module in model.modules()]
    perplexity(model, batches(1))
    assert [module.training for module in model.modules()] == flags
    assert True in flags
    assert False in flags


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        (torch.zeros(2, 4), InputError, r"needs logits \[rows, tokens, vocabulary\]"),
        (torch.full((2, 4, 8), float("nan")), ConversionError, "not finite"),
    ],
    ids=["no sequence", "NaN"],
)
def test_what_is_no_language_model(logits: Tensor, error: type[Exception], message: str) -> None:
    class Constant(nn.Module):
        def forward(self, input_ids: Tensor) -> Tensor:
            return logits

    with pytest.raises(error, match=message):
        perplexity(Constant(), [{"input_ids": torch.ones(2, 4, dtype=torch.int64)}])


def test_windows_of_one_token_hold_nothing_to_predict() -> None:
    with pytest.raises(InputError, match="no token to predict"):
        perplexity(llama(), batches(1, tokens=1))


def test_a_model_that_fails_on_the_data_is_one_line() -> None:
    with pytest.raises(InputError, match="LlamaForCausalLM fails on a batch of the data: IndexError") as caught:
        perplexity(llama(), [{"input_ids": torch.full((1, 4), VOCABULARY)}])
    assert "\n" not in str(caught.value)


class Positional(nn.Module):
    """A causal language model that takes its ids by position and gives bare logits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = llama()

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.inner(input_ids=tokens).logits
        return found


class SeesTheFuture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = llama()

    def forward(self, input_ids: Tensor) -> Tensor:
        found: Tensor = self.inner(input_ids=input_ids).logits
        return found + found.mean(1, keepdim=True)


def test_causal_language_models_are_told_by_trial() -> None:
    (batch,) = batches(1)
    ids: Tensor = batch["input_ids"]  # type: ignore[call-overload]  # a dict
    with torch.no_grad():
        assert is_causal_language_model(llama(), batch)
        assert is_causal_language_model(gpt2(), batch)
        assert is_causal_language_model(Positional(), (ids,))
        assert not is_causal_language_model(bert(), batch)
        mask = torch.ones_like(ids)
        mask[:, -4:] = 0  # a change under the mask would tell nothing
        assert is_causal_language_model(llama(), {"input_ids": ids, "attention_mask": mask})
        assert not is_causal_language_model(masked_bert(), {"input_ids": ids, "attention_mask": mask})
        assert not is_causal_language_model(SeesTheFuture(), batch)
        assert not is_causal_language_model(nn.Linear(4, 4), (torch.ones(2, 4),))
