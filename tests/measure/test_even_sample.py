"""An even choice of a stream's rows."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from moeify.measure.even_sample import EvenSample


@given(capacity=st.integers(1, 9), sizes=st.lists(st.integers(0, 7), max_size=9))
def test_every_nth_row_is_kept_however_they_come(capacity: int, sizes: list[int]) -> None:
    sample, stream = EvenSample(capacity), torch.arange(sum(sizes))[:, None]
    for part in torch.split_with_sizes(stream, sizes):
        sample.add(part)
    step = 1
    while -(-len(stream) // step) > capacity:
        step *= 2
    assert sample.seen == len(stream)
    assert sample.rows().flatten().tolist() == stream[::step].flatten().tolist()


def test_rows_are_copies() -> None:
    sample, rows = EvenSample(4), torch.ones(2, 3)
    sample.add(rows)
    rows.zero_()
    assert torch.equal(sample.rows(), torch.ones(2, 3))
    assert EvenSample(1).rows().shape == (0, 0)
