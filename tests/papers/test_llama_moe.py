"""LLaMA-MoE's own rules (Zhu et al. 2024; v2: Qu et al. 2024), written down plainly, against the recipe `llama-moe`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import moeify
from moeify.api.planning import registry
from moeify.errors import UsageError
from moeify.ir.facts import NeuronImportance
from moeify.pipeline.configure import configure
from moeify.pipeline.pipeline import flatten
from papers.by_recipe import by_recipe, sets
from passes.rewriting import reference
from passes.tiny import correlated_inputs, random_site

SITE = random_site(gated=True, activation="silu")
INPUTS = correlated_inputs(600)


def dealt(values: Tensor, size: int, out_of: set[int]) -> list[set[int]]:
    """Of the experts that are not full and the neurons that are not taken, always the pair with the largest importance."""
    found = [set[int]() for _ in values]
    left = set(out_of)
    while left:
        open_ = [e for e in range(len(values)) if len(found[e]) < size]
        expert, neuron = max(((e, n) for e in open_ for n in left), key=lambda pair: float(values[pair]))
        found[expert].add(neuron)
        left.remove(neuron)
    return found


def importance(centres: Tensor) -> Tensor:
    """sum |h dL/dh| by the nearest centre; the host's loss is sum(y^2) / 2, differentiated here by autograd."""
    found = torch.zeros(len(centres), 48)
    down = SITE.down.read()
    for x in INPUTS:
        h = SITE.neuron_outputs(x[None])[0].clone().requires_grad_()
        (gradient,) = torch.autograd.grad((h @ down).square().sum() / 2, h)
        found[int((centres - x).norm(dim=1).argmin())] += (h.detach() * gradient).abs()
    return found


@pytest.mark.parametrize("shared", [0, 1])
def test_the_same_experts_the_same_gates_the_same_output(shared: int) -> None:
    routed = 8 - shared
    settings = {
        "cluster-neurons.experts": routed,
        "measure-importance.groups": routed,
        "cluster-neurons.shared_experts": shared,
    }
    spec, context = by_recipe("llama-moe", SITE, INPUTS, settings)
    found: NeuronImportance = context.given[NeuronImportance]
    values = importance(found.centres)
    torch.testing.assert_close(found.values, values, rtol=1e-3, atol=1e-3)
    together = set(spec.shared.tolist())
    assert len(together) == 6 * shared
    wanted = dealt(found.values, 6, set(range(48)) - together)
    assert sets(spec) == wanted

    x = correlated_inputs(40, seed=6)
    h, down, y = SITE.neuron_outputs(x), SITE.down.read(), torch.zeros(40, SITE.output)
    for token, logits in enumerate(x @ found.centres.T):
        best = logits.topk(2)
        for gate, e in zip(best.values.softmax(0), best.indices.tolist()):
            neurons = sorted(wanted[e])
            y[token] += 4.0 * gate * (h[token, neurons] @ down[neurons])
    y += h[:, spec.shared] @ down[spec.shared]
    torch.testing.assert_close(reference(SITE, spec, x.double()).float(), y, rtol=1e-3, atol=1e-3)


def test_another_number_of_experts_than_of_groups_is_refused_before_a_model_is_read(tmp_path: Path) -> None:
    settings = {"cluster-neurons.experts": 4}
    with pytest.raises(UsageError, match=r"cluster-neurons.experts is 4 but measure-importance.groups is 8, and"):
        moeify.convert(tmp_path / "none", recipe="llama-moe", calibrate=tmp_path / "none.txt", settings=settings)


def test_the_number_of_experts_sets_both() -> None:
    found = configure("llama-moe", experts=16, tokens=99)
    by_name = {step.name: step for step in flatten(found.build(registry()).passes)}
    assert getattr(by_name["measure-importance"], "groups", None) == 16
    assert getattr(by_name["measure-importance"], "tokens", None) == 99
    assert getattr(by_name["cluster-neurons"], "experts", None) == 16
