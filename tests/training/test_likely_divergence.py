"""The divergence that is computed strip by strip, and its written gradient, against autograd in float64.

What is found is float32: a logarithm of a sum is right to some 1e-6, and what is left for the others, 1 less a sum near 1, to
less; hence 1e-5 for the value and 1e-4 for gradients that have that difference in a denominator.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moeify.training import strips as cutting
from moeify.training.likely_divergence import likely_divergence
from moeify.training.strips import log_totals, strips


def logits(seed: int, width: int, vectors: int = 9, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(vectors, width, generator=torch.Generator().manual_seed(seed))


def asked(width: int, likeliest: int) -> tuple[Tensor, Tensor]:
    """The dense model's log probabilities of its likeliest tokens, and these."""
    logs, ids = logits(0, width).log_softmax(-1).topk(likeliest, -1)
    return logs, ids


def by_definition(z: Tensor, likely: Tensor, ids: Tensor) -> Tensor:
    """In float64, with all tokens but ids as one."""
    logs, p = z.double().log_softmax(-1).gather(-1, ids), likely.double().exp()
    found = (p * (likely.double() - logs)).sum(-1)
    if z.shape[-1] > ids.shape[-1]:
        dense, left = ((1 - part.sum(-1)).clamp(min=1e-5) for part in (p, logs.exp()))
        found = found + dense * (dense.log() - left.log())
    return found.mean()


@pytest.mark.parametrize("strip", [1, 40, 1 << 17], ids=["a-vector", "a-few", "all-at-once"])
@pytest.mark.parametrize(("width", "likeliest"), [(40, 7), (7, 7)], ids=["others", "all-named"])
def test_value_and_gradient_are_those_of_the_definition(
    width: int, likeliest: int, strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "_CORE", strip)
    likely, ids = asked(width, likeliest)
    z = logits(1, width).requires_grad_()
    twin = z.detach().double().requires_grad_()
    found, wanted = likely_divergence(z, likely, ids), by_definition(twin, likely, ids)
    for value in (3 * found, 3 * wanted):
        value.backward()  # type: ignore[no-untyped-call]  # torch
    assert z.grad is not None
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(z.grad, twin.grad, rtol=1e-4, atol=1e-6, check_dtype=False)


def test_a_model_that_leaves_the_others_nothing_has_a_finite_gradient() -> None:
    likely, ids = asked(40, 7)
    z = logits(1, 40)
    z.scatter_add_(-1, ids, torch.full(ids.shape, 60.0))
    found = likely_divergence(z.requires_grad_(), likely, ids)
    found.backward()  # type: ignore[no-untyped-call]  # torch
    assert z.grad is not None
    twin = z.detach().double().requires_grad_()
    by_definition(twin, likely, ids).backward()  # type: ignore[no-untyped-call]  # torch
    torch.testing.assert_close(z.grad, twin.grad, rtol=1e-4, atol=1e-6, check_dtype=False)


def test_logits_of_half_precision_have_a_gradient_of_it() -> None:
    likely, ids = asked(40, 7)
    z = logits(1, 40).bfloat16().requires_grad_()
    likely_divergence(z, likely, ids).backward()  # type: ignore[no-untyped-call]  # torch
    assert z.grad is not None
    assert z.grad.dtype == torch.bfloat16
    twin = z.detach().double().requires_grad_()
    by_definition(twin, likely, ids).backward()  # type: ignore[no-untyped-call]  # torch
    torch.testing.assert_close(z.grad, twin.grad, rtol=2**-7, atol=1e-5, check_dtype=False)  # rounded once, to 8 bits


def test_strips_are_all_of_it_and_one_vector_at_least() -> None:
    wide = torch.zeros(3, 1 << 18)
    assert [strip.stop - strip.start for strip in strips(wide)] == [1, 1, 1]
    narrow = torch.arange(1000.0).view(500, 2)
    assert torch.equal(torch.cat([narrow[strip] for strip in strips(narrow)]), narrow)
    torch.testing.assert_close(log_totals(narrow / 100), (narrow / 100).logsumexp(-1))
    assert log_totals(torch.zeros(0, 5)).shape == (0,)
