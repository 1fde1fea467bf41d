"""Tracing: the graph computes what the model computes, the model stays as it was, weights are neither copied nor held."""

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
from moeify.ir.model_graph import Batch
from traced_zoo import traced_zoo
from zoo import ZOO, built, ids, values
from zoo_modules import HIDDEN, Residual, mlp


class Computes(nn.Module):
    """A linear, and then whatever the function computes."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(HIDDEN, HIDDEN)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.linear(x))


def computes(function: Callable[[Tensor], Any]) -> nn.Module:
    return built(lambda: Computes(function))


def _longer(example: Batch) -> Batch:
    """A batch of 3 with 9 tokens (5 for a decoder) in place of the example."""
    other: dict[Any, Any] = {"input_ids": ids(3, 9), "attention_mask": torch.ones(3, 9, dtype=torch.long)}
    other["decoder_input_ids"] = ids(3, 5)
    if isinstance(example, dict):
        return {key: other[key] for key in example}
    return (values(3, 9, HIDDEN) if example[0].is_floating_point() else ids(3, 9),)


@pytest.mark.parametrize("name", ["llama", "t5", "mixtral", "encoder-post-relu", "nanogpt"])
def test_a_graph_is_dynamic_and_functional(name: str) -> None:
    zoo, traced, _ = traced_zoo(name)
    assert (traced.dynamic, traced.notes) == (True, ())
    assert all(is_functional(node) for node in traced.graph.graph.nodes)
    batch = _longer(zoo.example)
    outputs = [leaf for leaf in traced.run(zoo.model, batch) if isinstance(leaf, Tensor)]
    expected = zoo.run(batch)
    torch.testing.assert_close(outputs[0], expected if isinstance(expected, Tensor) else expected[0], rtol=1e-4, atol=1e-4)


def _state(model: nn.Module) -> tuple[list[bool], list[Any], bool]:
    configs = [getattr(getattr(m, "config", None), "use_cache", None) for m in model.modules()]
    return [m.training for m in model.modules()], configs, torch.backends.mha.get_fastpath_enabled()


def test_the_model_is_left_as_it_was() -> None:
    zoo = ZOO["llama"]()
    zoo.model.train()
    zoo.model.get_submodule("model.layers.0.mlp").eval()
    before, weights = _state(zoo.model), {k: v.clone() for k, v in zoo.model.state_dict().items()}
    random = torch.random.get_rng_state()
    trace(zoo.model, zoo.example)
    assert _state(zoo.model) == before
    assert True in before[1]  # a cache was on
    assert torch.equal(random, torch.random.get_rng_state())
    for name, value in zoo.model.state_dict().items():
        assert torch.equal(value, weights[name])


def test_each_config_gets_its_own_value_back() -> None:
    zoo = ZOO["t5"]()
    zoo.model.get_submodule("decoder").config.use_cache = False  # type: ignore[union-attr]  # Hugging Face's own attribute
    before = _state(zoo.model)
    with tracing_state(zoo.model):
        assert set(_state(zoo.model)[1]) <= {False, None}
    assert _state(zoo.model) == before
    assert {True, False} <= set(before[1])


def test_the_model_is_left_as_it_was_after_an_error() -> None:
    model = computes(lambda h: h if h.sum().item() > 0 else -h).train()
    before = _state(model)
    with pytest.raises(InputError):
        trace(model, (values(2, 5, HIDDEN),))
    assert _state(model) == before
    assert not any(module._forward_hooks for module in model.modules())


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


def test_a_batch_of_one_does_not_fix_the_batch_size() -> None:
    zoo = ZOO["nanogpt"]()
    traced = trace(zoo.model, (ids(1, 6),))
    assert traced.dynamic
    torch.testing.assert_close(traced.run(zoo.model, (ids(4, 3),))[0], zoo.run((ids(4, 3),)))


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


def _unrolled(h: Tensor) -> Tensor:
    return torch.stack([h[:, i] * i for i in range(h.shape[1])], 1)


def test_a_loop_over_the_sequence_is_not_dynamic() -> None:
    traced = trace(computes(_unrolled), (values(2, 5, HIDDEN),))
    assert (traced.dynamic, traced.notes) == (
        False,
        ("the traced graph holds for a size of 5 in dim 1 only, the model for others too",),
    )


def test_a_branch_on_the_sequence_is_not_dynamic() -> None:
    """The graph's sizes are open, but they have limits that the model has not."""
    traced = trace(computes(lambda h: h * 2 if h.shape[1] > 3 else h), (values(2, 5, HIDDEN),))
    assert (traced.dynamic, traced.notes) == (
        False,
        ("the traced graph holds for sizes from 4 in dim 1 only, the model for others too",),
    )
    traced = trace(computes(lambda h: h * 2 if h.shape[1] < 9 else h), (values(2, 5, HIDDEN),))
    assert traced.notes == ("the traced graph holds for sizes up to 8 in dim 1 only, the model for others too",)


def test_a_longest_sequence_is_no_limit_of_the_graph() -> None:
    """The model itself takes no more than 6 tokens."""
    table = torch.ones(6, HIDDEN)
    assert trace(computes(lambda h: h + table[torch.arange(h.shape[1])]), (values(2, 5, HIDDEN),)).dynamic
    assert trace(computes(lambda h: h + table[torch.arange(h.shape[1])]), (values(2, 6, HIDDEN),)).dynamic


def test_a_model_of_one_shape_is_traced_at_that_shape() -> None:
    def picky(h: Tensor) -> Tensor:
        if tuple(h.shape) != (2, 5, HIDDEN):
            raise ValueError("only 2 x 5")
        return h

    traced = trace(computes(picky), (values(2, 5, HIDDEN),))
    assert (traced.dynamic, traced.notes) == (
        False,
        ("batch and sequence sizes are fixed: the model takes only inputs of the example's shape",),
    )


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
