"""Choice and gates: sizes, ties, sums, the straight-through gradient, and what a NaN does."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_reference import route as reference
from moeify.ir.moe_config import GateRule
from moeify.layers.routing import ChoiceRule, choose, route

RULES = get_args(GateRule)


@st.composite
def scores(draw: st.DrawFn) -> Tensor:
    """Scores [tokens, experts], float64, many of them equal."""
    tokens, experts = draw(st.integers(0, 6)), draw(st.integers(1, 12))
    values = draw(st.lists(st.integers(-3, 3), min_size=tokens * experts, max_size=tokens * experts))
    return torch.tensor(values, dtype=torch.float64).view(tokens, experts) / 2


@settings(deadline=None)
@given(scores(), st.data())
def test_top_k_chooses_k_and_the_lower_index_of_equals(values: Tensor, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, values.shape[1]))
    chosen = choose(values, k, None)
    assert (chosen.sum(-1) == k).all()
    for row, on in zip(values.tolist(), chosen.tolist()):
        best = sorted(range(len(row)), key=lambda e: (-row[e], e))[:k]
        assert [e for e in range(len(row)) if on[e]] == sorted(best)


@settings(deadline=None)
@given(scores(), st.floats(-2, 2), st.data())
def test_both_rules_must_hold(values: Tensor, threshold: float, data: st.DataObject) -> None:
    k = data.draw(st.none() | st.integers(1, values.shape[1]))
    both = choose(values, k, threshold)
    assert torch.equal(both, choose(values, k, None) & (values >= threshold))
    assert torch.equal(choose(values, k, -torch.inf), choose(values, k, None))


@settings(deadline=None)
@given(scores(), st.sampled_from(RULES), st.booleans(), st.data())
def test_routing_equals_the_reference(values: Tensor, rule: GateRule, normalize: bool, data: st.DataObject) -> None:
    k = data.draw(st.none() | st.integers(1, values.shape[1]))
    threshold = data.draw(st.none() | st.sampled_from([-0.25, 0.25, 0.75]))
    bias = data.draw(st.none() | st.just(torch.linspace(-1, 1, values.shape[1], dtype=torch.float32)))
    routing = route(values, ChoiceRule(k, threshold, rule, normalize), bias)
    chosen, gates = reference(
        values.numpy(), k, threshold, None if bias is None else bias.numpy(), gate_rule=rule, normalize=normalize
    )
    np.testing.assert_array_equal(routing.chosen.numpy(), chosen)
    np.testing.assert_allclose(routing.gates.numpy(), gates, rtol=1e-12, atol=0)


@settings(deadline=None)
@given(scores(), st.sampled_from(RULES), st.data())
def test_normalised_gates_sum_to_one_over_the_chosen(values: Tensor, rule: GateRule, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, values.shape[1]))
    threshold = data.draw(st.none() | st.just(0.1))
    routing = route(values, ChoiceRule(k, threshold, rule, True), None)
    some = routing.chosen.any(-1)
    torch.testing.assert_close(routing.gates.sum(-1), some.double())
    assert (routing.gates[~routing.chosen] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gates_are_at_least_float32(dtype: torch.dtype) -> None:
    values = torch.tensor([[1.0, 2.0, 3.0]], dtype=dtype)
    routing = route(values, ChoiceRule(2, None, "softmax", False), None)
    assert routing.gates.dtype == torch.float32
    assert torch.equal(routing.gates, values.float().softmax(-1) * torch.tensor([0.0, 1.0, 1.0]))


def test_the_selection_bias_steers_the_choice_but_no_gate() -> None:
    values = torch.tensor([[0.0, 1.0, 2.0]])
    rule = ChoiceRule(1, None, "sigmoid", False)
    routing = route(values, rule, torch.tensor([5.0, 0.0, 0.0]))
    assert routing.gates.tolist() == [[0.5, 0.0, 0.0]]


def test_rule_one_is_straight_through() -> None:
    values = torch.tensor([[0.3, -1.0, 2.0, 0.1]], dtype=torch.float64, requires_grad=True)
    toward = torch.tensor([[1.0, -2.0, 0.5, 3.0]], dtype=torch.float64)
    routing = route(values, ChoiceRule(2, None, "one", False), None)
    assert routing.gates.tolist() == [[1.0, 0.0, 1.0, 0.0]]
    (found,) = torch.autograd.grad((routing.gates * toward).sum(), values)
    (wanted,) = torch.autograd.grad((values.softmax(-1) * toward * routing.chosen).sum(), values)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("rule", ["softmax", "sigmoid"])
@pytest.mark.parametrize("k", [1, 2])
def test_a_detached_sum_normalises_and_leaves_the_gradient_of_the_values(rule: GateRule, k: int) -> None:
    scores = torch.tensor([[0.3, -1.0, 2.0, 0.1]], dtype=torch.float64, requires_grad=True)
    toward = torch.tensor([[1.0, -2.0, 0.5, 3.0]], dtype=torch.float64)
    routing = route(scores, ChoiceRule(k, None, rule, True, True), None)
    assert torch.equal(routing.gates, route(scores, ChoiceRule(k, None, rule, True), None).gates)
    values = scores.softmax(-1) if rule == "softmax" else scores.sigmoid()
    total = (values * routing.chosen).sum().item()
    (found,) = torch.autograd.grad((routing.gates * toward).sum(), scores, retain_graph=True)
    (wanted,) = torch.autograd.grad((values * toward * routing.chosen).sum() / total, scores)
    torch.testing.assert_close(found, wanted)
    assert float(found.abs().max()) > 0.01


def test_gates_without_chosen_experts_have_finite_gradients() -> None:
    values = torch.tensor([[0.3, -1.0]], dtype=torch.float64, requires_grad=True)
    routing = route(values, ChoiceRule(None, 9.0, "softmax", True), None)
    assert routing.gates.tolist() == [[0.0, 0.0]]
    (found,) = torch.autograd.grad(routing.gates.sum(), values)
    assert found.isfinite().all()


def test_a_score_that_is_not_a_number_is_chosen() -> None:
    values = torch.tensor([[1.0, torch.nan, 2.0], [torch.nan, torch.nan, torch.nan]])
    assert choose(values, 2, None).tolist() == [[False, True, True], [True, True, False]]
    assert choose(values, None, 5.0).tolist() == [[False, True, False], [True, True, True]]
