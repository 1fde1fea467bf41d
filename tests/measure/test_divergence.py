"""Divergence against NumPy in float64, and its properties."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cosine
from scipy.special import log_softmax
from torch import Tensor, nn

from measure.small_models import batches, bert, llama, logits_of
from moeify.errors import ConversionError, InputError
from moeify.measure.divergence import Divergence, DivergenceSum, divergence
from moeify.measure.outputs import main_output


def of(dense: Tensor, other: Tensor, name: str = "logits", shown: Tensor | None = None) -> Divergence:
    total = DivergenceSum()
    total.add(dense, other, name, shown)
    return total.result()


def test_logits_against_numpy() -> None:
    dense, other, data = llama(0), llama(1), batches(3)
    d = np.concatenate([logits_of(dense, batch).double().numpy().reshape(-1, 53) for batch in data])
    m = np.concatenate([logits_of(other, batch).double().numpy().reshape(-1, 53) for batch in data])
    log_d, log_m = log_softmax(d, -1), log_softmax(m, -1)
    found = divergence(dense, other, data)
    assert (found.output, found.vectors) == ("logits", len(d))
    assert found.kl == pytest.approx((np.exp(log_d) * (log_d - log_m)).sum(-1).mean(), rel=1e-9)
    assert found.agreement == pytest.approx((d.argmax(-1) == m.argmax(-1)).mean())
    assert found.relative_error == pytest.approx(np.linalg.norm(d - m) / np.linalg.norm(d), rel=1e-9)
    assert found.largest_difference == pytest.approx(abs(d - m).max() / abs(d).max(), rel=1e-9)
    assert found.cosine == pytest.approx(np.mean([1 - cosine(a, b) for a, b in zip(d, m)]), rel=1e-9)


def test_an_encoder_is_compared_by_its_last_hidden_state() -> None:
    found = divergence(bert(0), bert(1), batches(2))
    assert found.output == "last_hidden_state"
    assert found.kl is None
    assert found.agreement is None
    assert found.relative_error > 0.1
    assert found.cosine < 0.99


def test_a_model_does_not_diverge_from_itself() -> None:
    found = divergence(llama(), llama(), batches(2))
    assert replace(found, cosine=1.0) == Divergence("logits", 48, 0.0, 1.0, 0.0, 0.0, 1.0)
    assert found.cosine == pytest.approx(1.0)


def test_tokens_under_the_mask_are_left_out() -> None:
    dense, other = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 3, 5)
    shown = torch.tensor([[True, True, False], [True, False, False]])
    assert of(dense, other, shown=shown) == of(dense[shown], other[shown])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 9), st.floats(-20, 20))
def test_kl_is_positive_and_blind_to_a_shift(seed: int, tokens: int, width: int, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    d, m = (3 * torch.randn(tokens, width, dtype=torch.float64, generator=generator) for _ in range(2))
    found, shifted = of(d, m), of(d, m + shift)
    assert found.kl is not None
    assert found.kl >= 0
    assert shifted.kl == pytest.approx(found.kl, abs=1e-9)
    assert of(d, d + shift).kl == pytest.approx(0, abs=1e-9)
    assert -1 - 1e-9 <= found.cosine <= 1 + 1e-9


@pytest.mark.parametrize("shape", [(4,), (4, 3), (2, 4, 3), (2, 3, 4, 4)], ids=str)
def test_outputs_of_any_rank(shape: tuple[int, ...]) -> None:
    d = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = of(d, 2 * d, "output")
    assert found.relative_error == pytest.approx(1)
    assert found.cosine == pytest.approx(1)
    assert found.vectors == (2 if len(shape) == 4 else d.reshape(-1, shape[-1]).shape[0] if len(shape) > 1 else 4)


@pytest.mark.parametrize(
    ("dense", "other", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), r"differ in shape: \[2, 3\], \[2, 4\]"),
        (torch.zeros(2, 3), torch.full((2, 3), torch.nan), "output of the converted model holds values that are not finite"),
        (torch.full((2, 3), torch.inf), torch.zeros(2, 3), "output of the dense model holds values that are not finite"),
    ],
    ids=["shapes", "NaN", "infinite"],
)
def test_what_cannot_be_compared(dense: Tensor, other: Tensor, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        of(dense, other, "output")


def test_no_batch_to_compare() -> None:
    with pytest.raises(InputError, match="holds nothing to compare"):
        divergence(nn.Identity(), nn.Identity(), [])


@pytest.mark.parametrize(
    ("output", "name"),
    [
        (torch.ones(1), "output"),
        ({"loss": torch.ones(1), "logits": torch.ones(2)}, "logits"),
        ({"pooled": torch.ones(1), "last_hidden_state": torch.ones(2)}, "last_hidden_state"),
        ({"note": "text", "boxes": torch.ones(2)}, "boxes"),
        ((None, torch.ones(2)), "output 1"),
    ],
    ids=["tensor", "logits", "hidden", "first", "tuple"],
)
def test_the_main_output(output: Any, name: str) -> None:
    assert main_output(output)[0] == name


def test_an_output_without_a_tensor() -> None:
    with pytest.raises(InputError, match="gives no tensor to measure, but str"):
        main_output("text")
