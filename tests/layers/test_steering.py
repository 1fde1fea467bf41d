"""Noise, dropout of the gating and capacity, as functions of scores and choices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moeify.layers.steering import jittered, noisy, within_capacity, without_gating


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_jitter_scales_within_its_width() -> None:
    x = torch.full((1000, 4), 2.0)
    found = jittered(x, 0.1) / x
    assert 0.9 <= found.min() < 0.901
    assert 1.099 < found.max() <= 1.1
    assert jittered(x, 0.0) is x


def test_noise_has_its_deviation() -> None:
    s = torch.zeros(5000, 4)
    assert noisy(s, 0.3).std().item() == pytest.approx(0.3, rel=0.02)
    assert noisy(s, 0.0) is s


def test_without_gating_experts_are_any_but_as_many() -> None:
    chosen = torch.zeros(4000, 4, dtype=torch.bool)
    chosen[:, 0] = True
    chosen[2000:, 1] = True
    found = without_gating(chosen, 0.5)
    assert torch.equal(found.sum(-1), chosen.sum(-1))
    assert found[:2000].float().mean(0).tolist() == pytest.approx([0.625, 0.125, 0.125, 0.125], abs=0.03)
    assert torch.equal(without_gating(chosen, 0.0), chosen)


def tokens_of(chosen: Tensor, expert: int) -> list[int]:
    return chosen[:, expert].nonzero().flatten().tolist()


def test_over_capacity_the_lowest_gates_are_dropped() -> None:
    values = torch.tensor([[0.1, 0.5], [0.9, 0.5], [0.4, 0.2], [0.8, 0.5]])
    chosen = torch.tensor([[True, False], [True, False], [True, True], [True, False]])
    found = within_capacity(chosen, values, 0.8, "gate", None)  # room for ceil(0.8 x 5 / 2) = 2
    assert (tokens_of(found, 0), tokens_of(found, 1)) == ([1, 3], [2])
    found = within_capacity(chosen, values, 0.8, "position", None)
    assert (tokens_of(found, 0), tokens_of(found, 1)) == ([0, 1], [2])
    equal = within_capacity(chosen, torch.ones(4, 2), 0.8, "gate", None)
    assert tokens_of(equal, 0) == [0, 1]


def test_padding_takes_no_room() -> None:
    chosen = torch.ones(4, 1, dtype=torch.bool)
    found = within_capacity(chosen, torch.ones(4, 1), 1.0, "position", torch.tensor([0.0, 1, 0, 1]))
    assert tokens_of(found, 0) == [1, 3]


@given(st.integers(0, 10_000), st.integers(0, 30), st.integers(1, 5), st.floats(0.1, 3), st.sampled_from(["gate", "position"]))
def test_capacity_is_kept_and_used(
    seed: int, tokens: int, experts: int, factor: float, drop: Literal["gate", "position"]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(tokens, experts, generator=generator)
    chosen = torch.rand(tokens, experts, generator=generator) < 0.6
    found = within_capacity(chosen, values, factor, drop, None)
    room = torch.tensor(factor * int(chosen.sum()) / experts, dtype=torch.float64).ceil()
    assert not (found & ~chosen).any()
    assert torch.equal(found.sum(0), chosen.sum(0).clamp(max=int(room)))
    for e in range(experts):
        kept, dropped = values[found[:, e], e], values[(chosen & ~found)[:, e], e]
        assert drop == "position" or not len(dropped) or not len(kept) or kept.min() >= dropped.max()
