from __future__ import annotations

import time
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from moeify.errors import UsageError
from moeify_passes.experts.balanced_assignment import balanced_assignment
from moeify_passes.experts.group_graph import Floats, GroupGraph, Ints


def oracle(cost: Tensor, sizes: Tensor) -> float:
    """The least cost, by Jonker-Volgenant on columns repeated as often as their group is large."""
    repeated = cost.double().repeat_interleave(sizes, dim=1).numpy()
    rows, columns = linear_sum_assignment(repeated)
    return float(repeated[rows, columns].sum())


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Costs with and without ties, of any scale, and group sizes of which some may be zero."""
    sizes = torch.tensor(draw(st.lists(st.integers(0, 8), min_size=1, max_size=7).filter(any)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    cost = torch.randn(int(sizes.sum()), len(sizes), generator=generator, dtype=torch.float64)
    cost = {
        "real": lambda: cost,
        "ties": lambda: cost.round(),
        "all equal": lambda: cost * 0 + 3,
        "one group is cheapest": lambda: cost + 9 * torch.arange(len(sizes)),
        "equal rows": lambda: cost[:1].expand(len(cost), -1).contiguous(),
        "rows of every scale": lambda: cost * 10.0 ** torch.linspace(-8, 8, len(cost), dtype=torch.float64)[:, None],
    }[draw(st.sampled_from(["real", "ties", "all equal", "one group is cheapest", "equal rows", "rows of every scale"]))]()
    return cost * 10.0 ** draw(st.integers(-12, 12)), sizes


@settings(deadline=None, max_examples=200)
@given(problems())
def test_is_as_cheap_as_the_oracle_and_proves_it(problem: tuple[Tensor, Tensor]) -> None:
    cost, sizes = problem
    found = balanced_assignment(cost, sizes)
    scale = float(cost.abs().max()) * len(cost)
    assert torch.equal(found.labels.bincount(minlength=len(sizes)), sizes)
    assert found.cost == pytest.approx(float(cost[torch.arange(len(cost)), found.labels].sum()), rel=1e-12, abs=1e-12 * scale)
    assert abs(found.cost - oracle(cost, sizes)) <= 1e-9 * scale
    assert abs(found.gap) <= 1e-9 * scale
    priced = cost + found.prices
    paid = priced[torch.arange(len(cost)), found.labels]
    assert bool((paid <= priced.amin(1) + 1e-9 * scale).all()), "a point is not in its cheapest group"


@settings(deadline=None)
@given(problems(), st.integers(0, 100))
def test_prices_to_start_from_change_nothing_in_the_cost(problem: tuple[Tensor, Tensor], seed: int) -> None:
    cost, sizes = problem
    scale = float(cost.abs().max())
    prices = scale * torch.randn(len(sizes), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    warm, cold = balanced_assignment(cost, sizes, prices), balanced_assignment(cost, sizes)
    assert abs(warm.cost - cold.cost) <= 1e-9 * scale * len(cost)


def test_the_same_problem_gets_the_same_answer() -> None:
    cost = torch.randn(120, 6, generator=torch.Generator().manual_seed(0)).round()
    first = balanced_assignment(cost, torch.full((6,), 20))
    torch.rand(3)
    assert torch.equal(first.labels, balanced_assignment(cost, torch.full((6,), 20)).labels)


@pytest.mark.parametrize(
    ("cost", "sizes", "message"),
    [
        (torch.zeros(4, 2), [2, 1], "group sizes [2, 1] do not add up to 4 points in 2 groups"),
        (torch.zeros(4, 2), [5, -1], "group sizes [5, -1] do not add up to 4 points in 2 groups"),
        (torch.full((2, 2), torch.inf), [1, 1], "the costs of the assignment are not all finite"),
    ],
    ids=["too few places", "a negative size", "infinite costs"],
)
def test_refuses(cost: Tensor, sizes: list[int], message: str) -> None:
    with pytest.raises(UsageError) as error:
        balanced_assignment(cost, torch.tensor(sizes))
    assert message in str(error.value)


def large_problem(kind: str) -> Tensor:
    """Costs [14336, 64]: squared distances to 64 of the points."""
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(14336, 256, generator=generator)
    if kind == "crowded":  # most points are near one another
        points += 3 * torch.randn(256, generator=generator) * (torch.rand(14336, 1, generator=generator) > 0.3)
    if kind == "dead neurons":  # binary columns, most of them all zero
        points = (torch.rand(14336, 256, generator=generator) < torch.rand(14336, 1, generator=generator) ** 4).float()
        points[:9000] = 0
    centres = points[torch.randperm(14336, generator=generator)[:64]]
    return centres.square().sum(1) - 2 * points @ centres.T


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["spread", "crowded", "dead neurons"])
def test_the_neurons_of_a_large_model_take_seconds_and_little_memory(kind: str) -> None:
    cost = large_problem(kind)
    sizes = torch.full((64,), 224)
    started = time.perf_counter()
    found = balanced_assignment(cost, sizes)
    seconds = time.perf_counter() - started
    tracemalloc.start()  # NumPy reports its arrays to it; torch holds a few tables [points, groups] beside them
    balanced_assignment(cost, sizes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert torch.equal(found.labels.bincount(), sizes)
    assert abs(found.gap) <= 1e-9 * float(cost.abs().sum())
    assert seconds < 30
    assert peak < 10 * cost.numel() * 8


def test_prices_of_another_problem_do_not_hold_the_search_up(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(640, 8, generator=torch.Generator().manual_seed(0))
    cost = (points[:, None] - points[:40]).square().sum(-1)
    rounds: list[int] = []
    distances = GroupGraph._distances

    def counted(graph: GroupGraph) -> tuple[Floats, Ints]:
        rounds.append(1)
        return distances(graph)

    monkeypatch.setattr(GroupGraph, "_distances", counted)
    plain = balanced_assignment(cost, torch.full((40,), 16))
    alone = len(rounds)
    misled = balanced_assignment(cost, torch.full((40,), 16), torch.linspace(0, 900, 40, dtype=torch.float64))
    assert misled.cost == pytest.approx(plain.cost)
    assert len(rounds) - alone <= alone + 40, "the moves of a search that began where all points are in one group"
