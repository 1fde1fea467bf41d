"""Rows that an alignment is judged by: the same ones in every reading, and in none of what passes see."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moeify.api.planning import prepare
from moeify.data.data_set import batch_rows
from moeify.data.held_out_rows import HELD_OUT, Divider, without_held_out
from moeify.data.mixed import mixed
from moeify.data.open_data import open_data
from moeify.ir.model_graph import Batch
from moeify.pipeline.configure import configure
from moeify.training.align_data import divide
from zoo import ZOO


def numbered(sizes: Iterable[int], tokens: int = 4) -> list[Batch]:
    """Batches of so many rows, each filled with its number."""
    batches, start = list[Batch](), 0
    for size in sizes:
        ids = torch.arange(start, start + size)[:, None].expand(size, tokens)
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "scale": 2.0})
        start += size
    return batches


def rows_of(batches: Iterable[Batch]) -> list[int]:
    found = list[int]()
    for batch in batches:
        assert isinstance(batch, dict)
        assert batch["scale"] == 2.0
        assert batch["attention_mask"].shape == batch["input_ids"].shape
        found += batch["input_ids"][:, 0].tolist()
    return found


@given(st.lists(st.integers(1, 7), min_size=1, max_size=12))
def test_every_row_is_held_out_or_left_wherever_batches_begin(sizes: list[int]) -> None:
    batches, rows = numbered(sizes), sum(sizes)
    left = rows_of(without_held_out(open_data(batches), 10**6))
    assert left == [number for number in range(rows) if number % 10 != 1]
    if rows > 1:
        assert rows_of(divide(batches, 8).held_out) == list(range(1, rows, 10))
        assert rows_of(divide(batches, 8).train) == left


def test_no_more_rows_than_a_look_can_afford_are_held_out() -> None:
    batches = numbered([4] * 20, tokens=HELD_OUT // 2)
    divider = Divider()
    out = [divider(batch)[1] for batch in batches]
    assert [number for number, places in enumerate(out) if any(places)] == [0, 2]
    assert sum(map(sum, out)) == 2


def test_the_rows_that_are_left_come_up_to_the_limit() -> None:
    assert len(rows_of(without_held_out(open_data(numbered([4] * 20)), 60))) == 18  # 14 rows are 56 tokens


def test_a_batch_of_which_nothing_is_left_takes_its_source_with_it() -> None:
    data = mixed([open_data(numbered([1] * 3)), open_data(numbered([1] * 3))], None)
    left = without_held_out(data, 10**6)
    assert rows_of(left) == [0, 1, 1, 2, 2]
    assert (data.order, left.order) == ([], [0, 0, 1, 0, 1])


@pytest.mark.sampled
@pytest.mark.parametrize("aligned", [False, True])
def test_passes_see_no_row_that_an_alignment_is_judged_by(aligned: bool) -> None:
    texts: list[Batch] = [
        {"input_ids": torch.randint(40, (4, 16), generator=torch.Generator().manual_seed(i))} for i in range(6)
    ]
    held = {tuple(row["input_ids"][0].tolist()) for row in divide(texts, 16).held_out if isinstance(row, dict)}
    ready = prepare(
        ZOO["llama"]().model, configure("best", active=0.5, tokens=256), texts, 256, factory=None, example=texts[0],
        dtype="fp32", device="cpu", allow_pickle=False, to_disk=False, aligned=aligned,
    )  # fmt: skip
    assert ready.data is not None
    seen = {tuple(row) for batch in ready.data if isinstance(batch, dict) for row in batch["input_ids"].tolist()}
    assert batch_rows(texts[0]) == 4
    assert len(held) == 3
    assert len(seen & held) == (0 if aligned else 3)
    assert len(seen) == (21 if aligned else 24)
