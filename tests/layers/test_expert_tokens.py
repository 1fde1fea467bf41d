"""Counts of tokens are rounded up where every other count would cost memory, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from moeify.layers.expert_tokens import even_count, evened
from moeify.layers.experts import LayerWeights, run_chosen
from moeify.layers.routing import Routing
from moeify.layers.rows import Rows


@pytest.mark.parametrize("count", [1, 15, 16, 17, 40])
def test_tokens_and_gates_are_repeated_up_to_an_even_count(count: int) -> None:
    tokens, gates = torch.arange(count) * 2, torch.arange(count)[:, None] / 8
    with torch.no_grad():
        found, factor = evened(torch.zeros(1, dtype=torch.bfloat16), tokens, gates)
    assert found is not None
    assert factor is not None
    assert len(found) == len(factor) == even_count(count) == -(-count // 16) * 16
    assert torch.equal(found[:count], tokens)
    assert torch.equal(factor[:count], gates)
    assert set(found[count:].tolist()) <= {2 * (count - 1)}


def test_even_counts_are_few_and_near() -> None:
    counts = [even_count(count) for count in range(1, 4097)]
    assert all(count <= even < count + max(16, count / 8) for count, even in enumerate(counts, 1))
    assert counts == sorted(counts)
    assert all(even_count(even) == even for even in counts)
    assert len(set(counts)) == 8 + 5 * 8, "a multiple of 16 up to 128, then eight for each doubling"


def test_float32_gradients_and_all_tokens_are_left_as_they_are() -> None:
    tokens = torch.arange(3)
    with torch.no_grad():
        assert evened(torch.zeros(1), tokens, None) == (tokens, None)
        assert evened(torch.zeros(1, dtype=torch.bfloat16), None, None) == (None, None)
    assert evened(torch.zeros(1, dtype=torch.bfloat16), tokens, None) == (tokens, None)


@pytest.mark.parametrize("gated", [False, True])
def test_the_output_is_that_of_the_tokens_alone(gated: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, up, down = (torch.randn(size, generator=generator).bfloat16() for size in ((37, 8), (24, 8), (24, 8)))
    rows = Rows(up, down)
    weights = LayerWeights(rows, (0, 12, 24), "silu")
    chosen = torch.rand(37, 2, generator=generator) < 0.5
    gates = torch.rand(37, 2, generator=generator) if gated else None
    routing = Routing(chosen.float(), chosen, chosen.float())
    with torch.no_grad():
        y = run_chosen(x, rows, weights, routing, gates)
    h = torch.nn.functional.silu(x.float() @ up.float().T) * chosen.repeat_interleave(12, 1)
    h = h if gates is None else h * gates.repeat_interleave(12, 1)
    assert torch.allclose(y.float(), h @ down.float(), atol=0.2, rtol=0.05)
