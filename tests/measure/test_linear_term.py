"""The linear term against what defines it."""

from __future__ import annotations

import torch
from torch import Tensor

from moeify.measure.linear_term import STRENGTH, linear_term


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_least_of_the_penalised_errors() -> None:
    x, missing, weights = drawn(60, 5), drawn(60, 3, seed=1) + 2.0, torch.rand(60, generator=torch.Generator().manual_seed(2))
    term = linear_term(x, missing, weights)
    parts = [value.double().requires_grad_() for value in (term.matrix, term.bias)]
    mean = weights.double() @ x.double() / weights.double().sum()
    centred = (x.double() - mean) * weights.double().sqrt()[:, None]
    penalty = STRENGTH * centred.square().sum() / x.shape[1]
    errors = (missing - x.double() @ parts[0] - parts[1]).square().sum(1) @ weights.double()
    gradients = torch.autograd.grad(errors + penalty * parts[0].square().sum(), parts)
    assert all(float(gradient.abs().max()) < 1e-3 for gradient in gradients)
    torch.testing.assert_close(term(x), x @ term.matrix + term.bias)


def test_nothing_to_say_is_nothing_said() -> None:
    x = drawn(20, 4)
    term = linear_term(x, torch.zeros(20, 3), torch.ones(20))
    assert float(term(x).abs().max()) == 0
    constant = linear_term(torch.zeros(20, 4), torch.ones(20, 3), torch.ones(20))
    torch.testing.assert_close(constant(x), torch.ones(20, 3))
