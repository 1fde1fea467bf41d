"""Correlations of neurons in groups, against NumPy's correlation matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moeify.measure.co_activation import BINS, bins_of, co_activation, dense_order


def hidden(tokens: int, neurons: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(tokens, 3, generator=generator) @ torch.randn(3, neurons, generator=generator)
    return common + 0.5 * torch.randn(tokens, neurons, generator=generator)


@pytest.mark.parametrize("sizes", [(4, 4, 4), (2, 7, 3), (60, 60), (40,) * 60], ids=lambda sizes: f"{len(sizes)}x{sizes[0]}")
def test_means_are_those_of_the_correlation_matrix(sizes: tuple[int, ...]) -> None:
    h = hidden(50, sum(sizes))
    matrix = np.corrcoef(h.abs().double().numpy().T)
    group = np.repeat(np.arange(len(sizes)), sizes)
    same, other = group[:, None] == group, ~np.eye(len(group), dtype=bool)
    found = co_activation(h, sizes)
    assert found.within == pytest.approx(matrix[same & other].mean())
    assert found.between == pytest.approx(matrix[~same].mean())
    assert found.neurons == len(group)
    side = bins_of(sizes)
    edges = np.round(np.linspace(0, len(group), side + 1)).astype(int)
    for a in range(side):
        for b in range(side):
            rows, columns = slice(edges[a], edges[a + 1]), slice(edges[b], edges[b + 1])
            cells = matrix[rows, columns][other[rows, columns]]
            assert found.bins[a][b] == (pytest.approx(cells.mean(), abs=1e-9) if cells.size else None)


def test_neurons_that_never_move_are_left_out() -> None:
    h = hidden(50, 8)
    h[:, 2] = 3.0
    found = co_activation(h, (4, 4))
    rest = co_activation(torch.cat((h[:, :2], h[:, 3:]), 1), (3, 4))
    assert found.neurons == 7
    assert found.within == pytest.approx(rest.within)
    assert found.between == pytest.approx(rest.between)


def test_a_single_group_has_nothing_between() -> None:
    found = co_activation(hidden(20, 4), (4,))
    assert found.between is None
    assert co_activation(hidden(20, 2), (1, 1)).within is None


@given(st.lists(st.integers(1, 200), min_size=1, max_size=80))
def test_runs_are_at_most_as_many_as_are_seen(sizes: list[int]) -> None:
    assert 1 <= bins_of(tuple(sizes)) <= min(BINS, sum(sizes))


def test_runs_hold_neurons_of_one_group_where_groups_are_alike() -> None:
    assert bins_of((96,) * 16) == 48
    assert bins_of((7,) * 5) == 35
    assert bins_of((300,) * 32) == 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dense_order_is_found_again(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(24, 16, generator=generator)
    order = torch.randperm(24, generator=generator)
    found = dense_order(dense, dense[order].to(dtype))
    assert found is not None
    assert torch.equal(found, order)


def test_equal_rows_are_taken_one_after_another() -> None:
    dense = torch.ones(3, 4)
    found = dense_order(dense, dense)
    assert found is not None
    assert found.tolist() == [0, 1, 2]


@pytest.mark.parametrize("rows", [torch.zeros(2, 4), torch.arange(12.0).reshape(3, 4) + 1, torch.zeros(3, 4)])
def test_rows_that_are_others_have_no_order(rows: torch.Tensor) -> None:
    assert dense_order(torch.arange(12.0).reshape(3, 4), rows) is None
