"""CMoE's own steps (Pei et al. 2025, section 3, and the authors' code), written down plainly, against the recipe `cmoe`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from moeify.ir.feed_forward import FeedForward
from papers.by_recipe import by_recipe, sets
from passes.rewriting import reference
from passes.tiny import correlated_inputs, random_site

TOP, SHARED, ROUTED, SIZE = 6, 18, 5, 6


def markers(site: FeedForward, x: Tensor) -> Tensor:
    """1 on each token at the largest |H|, H of unit rows and unit inputs; [tokens, neurons]."""
    assert site.gate is not None
    gate, up, u = (F.normalize(m, dim=1) for m in (site.gate.read(), site.up.read(), x))
    hidden = F.silu(u @ gate.T) * (u @ up.T)
    marked = torch.zeros_like(hidden)
    for token, values in enumerate(hidden.abs()):
        marked[token, values.topk(TOP).indices] = 1
    return marked


def shared_neurons(marked: Tensor) -> list[int]:
    return marked.sum(0).argsort(descending=True, stable=True)[:SHARED].tolist()


def cost_of_experts(marked: Tensor, rest: list[int]) -> Tensor:
    """L1 distance of each remaining column to those of the neurons marked most often among them, [rest, experts]."""
    columns = marked.T[rest]
    centres = columns[columns.sum(1).argsort(descending=True, stable=True)[:ROUTED]]
    return torch.cdist(columns, centres, p=1).double()


def representative(marked: Tensor, expert: list[int]) -> int:
    own = marked.T[expert].double()
    return expert[int((own - own.mean(0)).abs().sum(1).argmin())]


@pytest.mark.parametrize("seed", range(4))
def test_the_same_experts_the_same_routing_the_same_output(seed: int) -> None:
    site = random_site(f"layer{'.' * seed}", gated=True, activation="silu")
    inputs = correlated_inputs(397, seed=seed)
    settings = {
        "cluster-neurons.by": {
            "kind": "activation-markers", "top": TOP, "weighted": False, "normalized": True, "start": "rates", "iterations": 1,
        },
        "insert-router.by": {"kind": "representative-neuron", "top": TOP},
    }  # fmt: skip
    spec, _ = by_recipe("cmoe", site, inputs, settings)
    marked = markers(site, inputs)
    shared = shared_neurons(marked)
    assert set(spec.shared.tolist()) == set(shared)

    rest = [neuron for neuron in range(48) if neuron not in shared]
    cost = cost_of_experts(marked, rest)
    repeated = cost.repeat_interleave(SIZE, dim=1).numpy()
    least = repeated[linear_sum_assignment(repeated)].sum()
    experts = [sorted(expert) for expert in sets(spec)]
    # Distances are whole numbers, so several assignments may be equally cheap: ours is one of them.
    assert sum(float(cost[rest.index(n), e]) for e, expert in enumerate(experts) for n in expert) == pytest.approx(least)
    assert sorted(n for expert in experts for n in expert) == rest
    chosen = [representative(marked, expert) for expert in experts]
    assert spec.router is not None
    assert site.gate is not None

    x = correlated_inputs(50, seed=77)
    gate, up = (F.normalize(m.read()[chosen], dim=1) for m in (site.gate, site.up))
    scores = ((x @ up.T) * F.silu(x @ gate.T)).abs()
    torch.testing.assert_close(spec.router.scores(x), scores, rtol=1e-4, atol=1e-5)
    h, down = site.neuron_outputs(x), site.down.read()
    y = h[:, shared] @ down[shared]
    for token, best in enumerate(scores.softmax(1).topk(3).indices.tolist()):
        for e in best:
            y[token] += h[token, experts[e]] @ down[experts[e]]
    np.testing.assert_allclose(reference(site, spec, x.double()).numpy(), y.numpy(), atol=1e-4)


def test_the_shipped_numbers_are_those_of_the_paper() -> None:
    """3 shared and 3 of 5 routed eighths, 10 marks a token."""
    spec, _ = by_recipe("cmoe", random_site(gated=True, activation="silu"), correlated_inputs(300), {})
    assert (len(spec.shared), [len(e) for e in spec.experts], spec.top_k) == (18, [6] * 5, 3)
