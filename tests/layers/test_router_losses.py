"""The losses on a router's scores, against their formulas in loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moeify.layers.router_losses import cv_squared, entropy, importance, load, load_balance, probabilities, z_loss
from moeify.layers.routing import ChoiceRule, route

TOP_2 = ChoiceRule(2, None, "softmax", False)


def scores(seed: int = 0, tokens: int = 7, experts: int = 4) -> Tensor:
    return torch.randn(tokens, experts, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_load_balance_is_the_formula() -> None:
    s = scores()
    routing = route(s, TOP_2, None)
    total = 0.0
    for e in range(4):
        share = sum(int(routing.chosen[t, e]) for t in range(7)) / 14
        total += share * sum(float(s[t].exp()[e] / s[t].exp().sum()) for t in range(7)) / 7
    assert load_balance(probabilities(s, "softmax"), routing.chosen).item() == pytest.approx(4 * total)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_load_balance_is_1_when_even_and_experts_over_k_at_worst(k: int) -> None:
    even = torch.stack([torch.eye(4).roll(shift, 1) for shift in range(k)]).sum(0).bool()
    assert load_balance(torch.full((4, 4), 0.25), even).item() == pytest.approx(1)
    collapsed = (torch.arange(4) < k).expand(8, 4)
    assert load_balance(collapsed / k, collapsed).item() == pytest.approx(4 / k)


def test_z_loss_is_the_formula() -> None:
    s = scores()
    wanted = sum(math.log(sum(math.exp(v) for v in row)) ** 2 for row in s.tolist()) / 7
    assert z_loss(s).item() == pytest.approx(wanted)
    assert z_loss(s.bfloat16()).dtype == torch.float32


def test_importance_is_the_squared_coefficient_of_variation_of_gates() -> None:
    gates = route(scores(), TOP_2, None).gates
    sums = gates.sum(0)
    wanted = ((sums - sums.mean()) ** 2).mean() / sums.mean() ** 2
    torch.testing.assert_close(importance(gates), wanted)
    assert importance(torch.full((3, 4), 0.5)) == 0


def test_load_is_the_probability_of_being_chosen_again() -> None:
    """Against noise drawn anew, one expert at a time, as Shazeer et al. define it."""
    clean, generator = scores(tokens=5), torch.Generator().manual_seed(1)
    noise = 0.7 * torch.randn(clean.shape, dtype=torch.float64, generator=generator)
    loud, draws = clean + noise, 20000
    chosen = torch.zeros_like(clean)
    for e in range(4):
        again = loud.expand(draws, 5, 4).clone()
        again[..., e] = clean[:, e] + 0.7 * torch.randn(draws, 5, dtype=torch.float64, generator=generator)
        chosen[:, e] = (again.topk(2, -1).indices == e).any(-1).double().mean(0)
    torch.testing.assert_close(load(clean, loud, 2, 0.7), cv_squared(chosen.sum(0)), rtol=0.05, atol=0)


def test_load_has_a_gradient_that_evens_it_and_is_0_where_all_are_chosen() -> None:
    s = scores()
    s[:, 0] += 1
    s.requires_grad_()
    value = load(s, s.detach() + 0.1, 2, 0.5)
    (gradient,) = torch.autograd.grad(value, s)
    assert gradient[:, 0].sum() > 0
    assert load(s, s, 4, 0.5) == load(s, s, None, 0.5) == 0


LOSSES: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "load_balance": lambda s, w: load_balance(probabilities(s, "sigmoid"), route(s, TOP_2, None).chosen, w),
    "z_loss": z_loss,
    "importance": lambda s, w: importance(route(s, TOP_2, None).gates, w),
    "load": lambda s, w: load(s, s + 0.1, 2, 0.5, w),
}


@pytest.mark.parametrize("name", LOSSES)
def test_tokens_of_weight_0_are_not_there(name: str) -> None:
    s, weight = scores(), torch.tensor([1.0, 0, 1, 1, 0, 0, 1])
    torch.testing.assert_close(LOSSES[name](s, weight), LOSSES[name](s[weight != 0], None))
    assert LOSSES[name](s, torch.zeros(7)) == 0
    assert LOSSES[name](s[:0], None) == 0


def test_probabilities_sum_to_1_by_every_rule() -> None:
    s = scores() * 50
    for rule in ("one", "softmax", "sigmoid"):
        p = probabilities(s, rule)
        torch.testing.assert_close(p.sum(-1), torch.ones(7, dtype=torch.float64))
        assert torch.equal(p.argmax(-1), s.argmax(-1)) or rule == "sigmoid"
    assert probabilities(torch.full((2, 4), -1e4), "sigmoid").isfinite().all()


def test_entropy_is_in_nats() -> None:
    assert entropy(torch.full((1, 4), 0.25)).item() == pytest.approx(math.log(4))
    assert entropy(torch.eye(4)).tolist() == [0, 0, 0, 0]
