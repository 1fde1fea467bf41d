from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from layers.stochastic_layers import TokenModel, stochastic_layer
from moeify.errors import UsageError
from moeify.training.consistency import symmetric_divergence, two_passes


def logits(seed: int, *lead: int) -> Tensor:
    return torch.randn(*lead, 11, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_the_mean_of_both_divergences() -> None:
    a, b = logits(0, 3, 5).float(), logits(1, 3, 5).float()
    log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
    both = F.kl_div(log_a, log_b, reduction="sum", log_target=True) + F.kl_div(log_b, log_a, reduction="sum", log_target=True)
    torch.testing.assert_close(symmetric_divergence(a, b), both / 2 / 15)
    torch.testing.assert_close(symmetric_divergence(b, a), symmetric_divergence(a, b))
    assert symmetric_divergence(a, a + 3).item() == pytest.approx(0, abs=1e-6)


def test_padding_does_not_count() -> None:
    a, b = logits(0, 2, 4), logits(1, 2, 4)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    torch.testing.assert_close(symmetric_divergence(a, b, mask), symmetric_divergence(a[mask != 0], b[mask != 0]))
    assert symmetric_divergence(a, b, torch.zeros(2, 4)).item() == 0


def test_it_pulls_both_passes_together() -> None:
    a, b = logits(0, 4).requires_grad_(), logits(1, 4).requires_grad_()
    before = symmetric_divergence(a, b)
    grads = torch.autograd.grad(before, [a, b])
    assert all(float(g.abs().max()) > 0 for g in grads)
    assert symmetric_divergence(a - 0.1 * grads[0], b - 0.1 * grads[1]) < before


def test_two_passes_draw_other_experts_and_training_makes_them_agree() -> None:
    ids = torch.randint(50, (16, 8), generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TokenModel(stochastic_layer(2, scope="token")).train()
        optimizer, divergences = torch.optim.AdamW(model.parameters(), lr=1e-2), []

        def run() -> tuple[Tensor, Tensor]:
            y = model(ids)["y"]
            return y.square().mean(), y

        for _ in range(60):
            found = two_passes(run, alpha=5.0)
            assert not torch.equal(*found.logits)
            torch.testing.assert_close(found.loss, found.task + 5 * found.consistency)
            optimizer.zero_grad()
            found.loss.backward()  # type: ignore[no-untyped-call]  # of torch
            optimizer.step()
            divergences.append(found.consistency.item())
    assert divergences[-1] < 0.3 * divergences[0]


def test_alpha_nought_is_the_task_alone() -> None:
    a = logits(0, 4)
    calls: list[int] = []

    def run() -> tuple[Tensor, Tensor]:
        calls.append(1)
        return a.sum() * len(calls), a + len(calls) * logits(1, 4)

    found = two_passes(run, alpha=0.0)
    assert len(calls) == 2
    torch.testing.assert_close(found.loss, 3 * a.sum())


@pytest.mark.parametrize(
    ("a", "b", "mask", "message"),
    [
        (logits(0, 3), logits(0, 4), None, "the shapes are [3, 11], [4, 11]"),
        (logits(0, 3), logits(0, 3), torch.ones(4), "the shapes are [3, 11], [3, 11], [4]"),
    ],
)
def test_refuses_shapes(a: Tensor, b: Tensor, mask: Tensor | None, message: str) -> None:
    with pytest.raises(UsageError) as error:
        symmetric_divergence(a, b, mask)
    assert message in str(error.value)


@pytest.mark.parametrize("alpha", [-1.0, float("nan"), float("inf")])
def test_refuses_alpha(alpha: float) -> None:
    with pytest.raises(UsageError, match=f"alpha is {alpha}: choose a number from 0"):
        two_passes(lambda: (torch.zeros(()), torch.zeros(1, 2)), alpha)
