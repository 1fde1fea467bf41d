"""Batch and sequence sizes stay open where the model allows it, and a note says where they do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moeify.frontend.trace import trace
from moeify.frontend.trace_shapes import other_size, resized, without_ones
from moeify.frontend.trace_writes import is_functional
from moeify.ir.model_graph import Batch
from traced_zoo import traced_zoo
from zoo import ZOO, ids, values
from zoo_computes import computes
from zoo_modules import HIDDEN


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


def test_a_batch_of_one_does_not_fix_the_batch_size() -> None:
    zoo = ZOO["nanogpt"]()
    traced = trace(zoo.model, (ids(1, 6),))
    assert traced.dynamic
    torch.testing.assert_close(traced.run(zoo.model, (ids(4, 3),))[0], zoo.run((ids(4, 3),)))


@pytest.mark.slow
def test_one_tensor_given_twice_is_two_inputs() -> None:
    zoo = ZOO["t5"]()
    tokens = ids(2, 5)
    traced = trace(zoo.model, {"input_ids": tokens, "decoder_input_ids": tokens})
    batch = {"input_ids": ids(2, 5, seed=3), "decoder_input_ids": ids(2, 5, seed=4)}
    torch.testing.assert_close(traced.run(zoo.model, batch)[0], zoo.run(batch).logits, rtol=1e-4, atol=1e-4)


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


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_other_sizes_keep_the_values_in_their_range(batch: int, tokens: int, rows: int, columns: int) -> None:
    example = torch.arange(batch * tokens).reshape(batch, tokens)
    found = resized(example, {0: rows, 1: columns})
    assert found.shape == (rows, columns)
    assert set(found.flatten().tolist()) <= set(example.flatten().tolist())
    assert torch.equal(found[: min(batch, rows), : min(tokens, columns)], example[: min(batch, rows), : min(tokens, columns)])


@given(st.integers(1, 9), st.integers(0, 1), st.integers(1, 9), st.none() | st.integers(1, 9))
def test_another_size_is_another_and_within_its_limits(size: int, dim: int, low: int, high: int | None) -> None:
    other = other_size(size, dim, low, high)
    assert other is None or (other != size and other >= low and (high is None or other <= high))


def test_sizes_of_one_are_repeated_where_all_batches_are_one() -> None:
    ones = {"ids": torch.ones(1, 1, dtype=torch.long), "pixels": torch.ones(1, 1, 4, 4), "flag": True}
    grown = without_ones(ones)
    assert isinstance(grown, dict)
    assert (grown["ids"].shape, grown["pixels"].shape, grown["flag"]) == ((2, 2), (2, 1, 4, 4), True)
    mixed = without_ones({"ids": torch.ones(3, 5), "mask": torch.ones(1, 5)})
    assert isinstance(mixed, dict)
    assert (mixed["ids"].shape, mixed["mask"].shape) == ((3, 5), (1, 5))
