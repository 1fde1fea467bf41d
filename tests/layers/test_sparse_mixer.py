"""SparseMixer: who is drawn, and that its gradient is the one it promises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moeify.layers.sparse_mixer import sparse_mixer

SCORES = torch.tensor([0.3, 1.0, 0.6, -0.4], dtype=torch.float64)
OUTPUTS = torch.tensor([1.0, -0.5, -1.5, 3.0], dtype=torch.float64)
WIDE, TOKENS = 10.0, 400_000


def draw(scores: Tensor, tokens: int = TOKENS, band: float = WIDE, normalize: bool = False) -> tuple[Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return sparse_mixer(scores.expand(tokens, -1), band, normalize)


def test_one_expert_is_drawn_by_its_gate() -> None:
    chosen, gates = draw(SCORES, 40_000)
    p = SCORES.softmax(-1)
    assert (chosen.sum(-1) == 1).all()
    torch.testing.assert_close(chosen.double().mean(0), p, atol=0.01, rtol=0)
    found = {e: sorted({round(float(g), 6) for g in gates[chosen[:, e], e]}) for e in range(4)}
    assert found == {e: [round(float(p[e] * f), 6) for f in ([1] if e == 1 else [0.5, 1])] for e in range(4)}
    assert (gates[~chosen] == 0).all()


def test_experts_out_of_the_band_are_never_drawn() -> None:
    chosen, _ = draw(SCORES, 10_000, band=0.35)  # 1 - 0.3 = 0.7 = 2 x 0.35 x 1 is within, 1.4 is not
    assert chosen.any(0).tolist() == [True, True, True, False]
    chosen, gates = draw(SCORES, 1000, band=0.01)
    assert chosen[:, 1].all()
    assert (gates[:, 1] == 1).all()
    assert draw(torch.zeros(1, 4), 1000)[0].any(0).all()  # scores of 0 are equal, not undefined


@pytest.mark.parametrize("normalize", [False, True])
def test_its_value_is_the_gate_or_half_of_it_and_its_gradient_twice_that_of_the_gate(normalize: bool) -> None:
    scores = SCORES.clone().requires_grad_()
    chosen, gates = draw(scores, 50, normalize=normalize)
    p = scores.softmax(-1)
    for t in range(50):
        e = int(chosen[t].nonzero())
        ratio = float(gates[t, e].detach() / (1 if normalize else p[e].detach()))
        (found,) = torch.autograd.grad(gates[t, e], scores, retain_graph=True)
        (wanted,) = torch.autograd.grad(p[e] / p[e].detach() if normalize else p[e], scores, retain_graph=True)
        torch.testing.assert_close(found, 2 * wanted)
        assert min(abs(ratio - 1), abs(ratio - 0.5)) < 1e-9


def quadratic(y: Tensor) -> Tensor:
    return 5 * y.square() - 1.3 * y


def test_the_mean_gradient_is_exact_to_second_order() -> None:
    """d/ds of E_e[f(p_e v_e)], f quadratic with f(0) = 0; the expert with the largest score by Euler's method."""
    exact, first_order = _expected(quadratic), _expected(quadratic, midpoint=False)
    scores = SCORES.clone().requires_grad_()
    _, gates = draw(scores)
    quadratic(gates @ OUTPUTS).mean().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    torch.testing.assert_close(scores.grad, exact, atol=4e-3, rtol=0)
    assert (exact - first_order).abs().max() > 0.05  # the test could tell


def _expected(f: Callable[[Tensor], Tensor], midpoint: bool = True) -> Tensor:
    """sum_e (f(x_e) - f(0)) grad p_e + p_e f'(x_e) v_e grad p_e, x_e = p_e v_e; Euler's is f'(x_e) x_e for the first."""
    scores = SCORES.clone().requires_grad_()
    p = scores.softmax(-1)
    total = torch.zeros_like(SCORES)
    for e in range(4):
        x = (p[e] * OUTPUTS[e]).detach().requires_grad_()
        value = f(x)
        (slope,) = torch.autograd.grad(value, x)
        (grad_p,) = torch.autograd.grad(p[e], scores, retain_graph=True)
        euler = e == int(SCORES.argmax()) or not midpoint
        reward = (slope * x if euler else value).detach()
        total += (reward + p[e].detach() * slope * OUTPUTS[e]) * grad_p
    return total
