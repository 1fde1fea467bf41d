"""Many experts of few rows: computed all at once (docs/moe-layer.md)."""

from __future__ import annotations

import pytest
import torch

from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.layers import experts
from moeify.layers.moe_layer import MoELayer


def layer(shared: int = 3, size: int = 1, count: int = 130, k: int | None = 20) -> MoELayer:
    """A gated layer with random weights."""
    offsets = tuple(range(shared, shared + size * count + 1, size))
    router = RouterConfig("linear", bias=True)
    made = MoELayer(MoEConfig(8, 8, "silu", True, offsets, router, output_bias=True, idle=True, top_k=k), dtype=torch.float64)
    generator = torch.Generator().manual_seed(size)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return made.eval()


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("tokens", [1, 50])
def test_equals_the_walk_over_experts_and_its_gradients(size: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(tokens, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for many in (128, 10_000):
        monkeypatch.setattr(experts, "_MANY", many)
        made, inputs = layer(size=size), x.clone().requires_grad_()
        y = made(inputs)
        y.square().sum().backward()
        grads = [p.grad for p in made.parameters() if p.grad is not None]
        assert inputs.grad is not None
        found.append([y.detach(), inputs.grad, *grads])
    assert len(found[0]) == len(found[1])
    for fine, coarse in zip(*found):
        torch.testing.assert_close(fine, coarse)


def test_weights_of_idle_experts_are_not_read() -> None:
    made, x = layer(), torch.randn(1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        before = made(x)
        idle = ~made.route(x).chosen[0]
        rows = idle.nonzero().flatten() + made.config.shared
        for weight in (made.up, made.down, made.gate):
            assert weight is not None
            weight[rows] = torch.nan
        assert torch.equal(made(x), before)


def test_one_token_s_broken_row_stays_with_it() -> None:
    """A row that overflows for a token that does not use it leaves no trace in that token's output."""
    made, x = layer(k=1), torch.zeros(2, 8, dtype=torch.float64)
    x[0, 0], x[1, 1] = 1.0, 1.0
    with torch.no_grad():
        assert made.router is not None
        for parameter in made.router.parameters():
            parameter.zero_()
        made.router.weight[5, 0], made.router.weight[9, 1] = 1.0, 1.0  # type: ignore[operator]  # a linear router's parameter
        assert made.gate is not None
        alone = made(x[1:])
        made.up[made.config.shared + 5, 1] = torch.inf
        assert torch.equal(made(x)[1:], alone)
