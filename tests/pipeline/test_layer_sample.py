"""Which tokens fit nulls and which judge."""

from __future__ import annotations

import pytest
import torch

from moeify.pipeline.layer_sample import judging_tokens, layer_sample


def stream(tokens: int, batch: int = 100) -> list[torch.Tensor]:
    return list(torch.split(torch.arange(tokens).float()[:, None], batch))


@pytest.mark.parametrize(
    ("tokens", "looked_at", "fit", "held", "held_out"),
    [
        (1000, 300, (0, 300, 1), (300, 556), True),
        (350, 300, (0, 300, 1), (300, 350), True),
        (300, 300, (0, 225, 1), (225, 300), False),
        (5000, 4096, (0, 4096, 4), (4096, 4352), True),
        (2000, None, (0, 1024, 1), (1024, 1280), True),
        (40, None, (0, 30, 1), (30, 40), True),
        (2, 5, (0, 1, 1), (1, 2), False),
    ],
)
def test_tokens_that_no_pass_looks_at_judge(
    tokens: int, looked_at: int | None, fit: tuple[int, int, int], held: tuple[int, int], held_out: bool
) -> None:
    sample = layer_sample(stream(tokens), looked_at)
    assert sample is not None
    assert sample.fit.flatten().tolist() == list(range(*fit))
    assert sample.held.flatten().tolist() == list(range(*held))
    assert sample.held_out is held_out


def test_it_stops_when_it_has_enough() -> None:
    read = 0

    def counted() -> object:
        nonlocal read
        for batch in stream(100_000):
            read += len(batch)
            yield batch

    assert layer_sample(counted(), 300) is not None  # type: ignore[arg-type]  # a generator
    assert read == 600
    assert layer_sample(stream(1), 300) is None
    assert layer_sample([], None) is None


def test_judging_costs_little() -> None:
    assert [judging_tokens(tokens) for tokens in (None, 64, 16384, 10**6)] == [1280, 256, 512, 1024]
