"""A list of tensors that takes a bounded amount of memory."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from moeify.splice.spill import SpilledList


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=8), st.integers(1, 4000))
def test_what_goes_in_comes_out_whatever_the_memory(sizes: list[int], memory: int) -> None:
    values = SpilledList(memory)
    for size in sizes:
        values.append({"x": torch.arange(size, dtype=torch.int64), "n": size})
    for index, size in enumerate(sizes):
        found = values.load(index)
        assert found["n"] == size
        assert torch.equal(found["x"], torch.arange(size))
    held = sum(8 * size for size in sizes) if values.spilled == 0 else 0
    assert held <= memory
    values.close()


def test_replacing_an_entry_frees_its_place() -> None:
    values = SpilledList(1000)
    values.append({"x": torch.zeros(100)})
    values.append({"x": torch.zeros(200)})
    assert values.spilled == 1
    values.store(0, {"x": torch.zeros(10)})
    values.store(1, {"x": torch.ones(200)})
    assert values.spilled == 0
    assert torch.equal(values.load(1)["x"], torch.ones(200))
    values.close()


def test_a_view_does_not_keep_a_large_tensor_alive() -> None:
    values = SpilledList(10**9)
    values.append({"x": torch.zeros(10_000)[:3]})
    assert values.load(0)["x"].untyped_storage().nbytes() == 12
    values.close()
