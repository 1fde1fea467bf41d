"""What an MoE layer costs beside the dense network: floating-point operations, and time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from layers.dense_sites import dense_site, split_spec
from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_spec import Compensation
from moeify.layers.moe_layer import MoELayer


@pytest.fixture(scope="module")
def site() -> FeedForward:
    return dense_site(hidden=768, neurons=3072)


@pytest.fixture
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def dense(site: FeedForward) -> Callable[[Tensor], Tensor]:
    """The dense network with its matrices as nn.Linear keeps them."""
    up, up_bias = site.up.read(), site.up_bias.read() if site.up_bias else None
    down, down_bias = site.down.read().T.contiguous(), site.output_bias.read() if site.output_bias else None
    return lambda x: F.linear(F.gelu(F.linear(x, up, up_bias)), down, down_bias)


def flops(function: Callable[[Tensor], Tensor], x: Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        function(x)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("tokens", [1, 64, 512])
@pytest.mark.parametrize("case", ["routed", "shared expert", "low rank", "all on"])
def test_flops_are_the_active_fraction_of_the_dense_ones(site: FeedForward, case: str, tokens: int) -> None:
    spec = split_spec(site, experts=8, shared=1024 if case == "shared expert" else 0, top_k=None if case == "all on" else 2)
    if case == "low rank":
        spec = replace(spec, compensation=Compensation(None, torch.ones(32, 768), torch.ones(32, 768)))
    x = torch.randn(tokens, 768, generator=torch.Generator().manual_seed(0))
    layer = MoELayer.from_spec(site, spec).eval()
    assert flops(layer, x) / flops(dense(site), x) == pytest.approx(spec.active_fraction(site), rel=0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("_one_thread")
def test_a_quarter_of_the_experts_takes_less_than_half_of_the_time(site: FeedForward) -> None:
    layer = MoELayer.from_spec(site, split_spec(site, experts=8, top_k=2)).eval()
    ways: tuple[Callable[[Tensor], Tensor], ...] = (dense(site), layer)
    x = torch.randn(512, 768, generator=torch.Generator().manual_seed(0))
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for _ in range(25):
            for way, times in zip(ways, seconds):
                start = time.perf_counter()
                way(x)
                times.append(time.perf_counter() - start)
    ratio = statistics.median(seconds[1]) / statistics.median(seconds[0])
    assert ratio <= 0.45, f"the MoE layer takes {ratio:.2f} of the dense network's time"
