"""Tracing: weights are neither copied nor held, writes become functional, failures are one line."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moeify.errors import InputError
from moeify.frontend.trace import trace
from moeify.frontend.trace_export import exported
from moeify.frontend.trace_state import tracing_state
from moeify.frontend.trace_writes import is_functional
from traced_zoo import traced_zoo
from zoo import built, ids, values
from zoo_computes import computes
from zoo_modules import HIDDEN, Residual, mlp


@pytest.mark.slow
def test_weights_are_neither_copied_nor_held() -> None:
    model = built(lambda: nn.Sequential(Residual(mlp()), Residual(mlp())))
    example = (values(2, 7, HIDDEN),)
    traced = trace(model, example)
    bound = traced.bind(model, example)
    for name, path in traced.lifted.items():
        assert bound[name].data_ptr() == model.get_parameter(path).data_ptr()
    del bound
    held = [weakref.ref(p) for p in model.parameters()]
    del model
    gc.collect()
    assert [ref() for ref in held] == [None] * len(held)
    assert len(traced.lifted) == len(held)


def test_weights_that_are_gone_are_left_out() -> None:
    model = built(lambda: nn.Sequential(Residual(mlp()), Residual(mlp())))
    example = (values(2, 7, HIDDEN),)
    traced = trace(model, example)
    model.set_submodule("0.inner", nn.Identity())
    gone = {name for name, path in traced.lifted.items() if path.startswith("0.inner.")}
    assert set(traced.lifted) - set(traced.bind(model, example)) == gone != set()
    with pytest.raises(InputError, match=r"the model has no 0\.inner\.0\.weight any more: trace it again"):
        traced.lifted_value(model, next(name for name, path in traced.lifted.items() if path == "0.inner.0.weight"))


def test_values_made_inside_forward_are_constants() -> None:
    model = computes(lambda h: h * torch.tensor(0.5))
    traced = trace(model, (values(2, 5, HIDDEN),))
    assert [float(value) for value in traced.constants.values()] == [0.5]


def test_in_place_writes_become_functional() -> None:
    def function(h: Tensor) -> Tensor:
        h = h.clone()
        kept = h + 0
        h += 1.0
        h *= kept
        return h - kept

    traced = trace(computes(function), (values(2, 5, HIDDEN),))
    assert "linear" in str(traced.graph.graph)
    assert all(is_functional(node) for node in traced.graph.graph.nodes)


def test_writes_through_views_are_decomposed() -> None:
    def function(h: Tensor) -> Tensor:
        h = torch.nn.functional.dropout(h * 2, 0.3, False)
        h[..., :3] += 1.0
        return h

    model = computes(function)
    with tracing_state(model):
        graph = exported(model, (values(2, 5, HIDDEN),), free=True).graph
    assert all(is_functional(node) for node in graph.nodes)
    assert [node.meta["dropout"] for node in graph.nodes if node.meta.get("dropout")] == [0.3]


def test_the_meta_device() -> None:
    with torch.device("meta"):
        model = nn.Sequential(Residual(mlp())).eval()
    traced = trace(model, (values(2, 7, HIDDEN),))
    assert traced.dynamic


FAILURES: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a branch on a value": (lambda h: h if h.sum().item() > 0 else -h, r"torch\.export cannot trace Computes: Could not guard"),
    "a random forward": (
        lambda h: h + torch.rand(HIDDEN),
        "the traced graph of Computes does not .*draws random numbers",
    ),
    "a failing forward": (lambda h: h @ torch.ones(3, 3), r"Computes does not run on its example inputs: mat1 and mat2"),
}


@pytest.mark.parametrize("caption", FAILURES)
def test_failures_are_one_line(caption: str) -> None:
    function, message = FAILURES[caption]
    with pytest.raises(InputError, match=message) as caught:
        trace(computes(function), (values(2, 5, HIDDEN),))
    assert "\n" not in str(caught.value)


class Rescaled(nn.Module):
    """RWKV's habit: the first forward in eval mode scales the matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.inner.get_parameter("2.weight").div_(2)
        y: Tensor = self.inner(x)
        return y


def test_a_model_that_changes_its_weights_is_refused() -> None:
    with pytest.raises(InputError, match=r"^Rescaled changes its own weights as it runs \(inner\.2\.weight\): an MoE layer"):
        trace(built(Rescaled), (values(2, 5, HIDDEN),))


WRONG_BATCHES: dict[str, tuple[Any, str]] = {
    "positional": ((ids(),), "a batch holds positional arguments, the model was traced with keyword ones"),
    "missing key": ({"input_ids": ids()}, "a batch holds input_ids, the model was traced with input_ids, attention_mask"),
    "empty": ({}, "a batch holds nothing, the model was traced with input_ids, attention_mask"),
    "nested": (
        {"input_ids": [ids(), ids()], "attention_mask": ids()},
        "a batch holds 3 values in another structure than the 2 traced",
    ),
}


@pytest.mark.parametrize("caption", WRONG_BATCHES)
def test_wrong_batches(caption: str) -> None:
    zoo, traced, _ = traced_zoo("llama")
    batch, message = WRONG_BATCHES[caption]
    with pytest.raises(InputError) as caught:
        traced.bind(zoo.model, batch)
    assert str(caught.value) == message


def test_keys_may_come_in_another_order() -> None:
    zoo, traced, _ = traced_zoo("llama")
    assert isinstance(zoo.example, dict)
    swapped = dict(reversed(zoo.example.items()))
    assert torch.equal(traced.run(zoo.model, swapped)[0], traced.run(zoo.model, zoo.example)[0])
