"""Experts gathered into one dense FFN: what it equals exactly, what it approximates, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from layers.dense_sites import dense_site, split_spec
from moeify.errors import UsageError
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.layers.dense_ffn import GATHERINGS, SVD, Concatenate, DenseWeights, Gathering, Mean, gathering
from moeify.layers.moe_layer import MoELayer
from moeify.measure.gathered import dense_function, weight_distance
from moeify.pipeline.context import PassContext
from moeify_passes.rewrite.upcycle_experts import UpcycleExperts
from passes.tiny import graph_of, random_site

HIDDEN, NEURONS, OUTPUT = 6, 8, 5


def drawn(config: MoEConfig) -> MoELayer:
    """A layer with normal weights in float64."""
    layer, generator = MoELayer(config, dtype=torch.float64), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layer.eval()


def split_config(**more: Any) -> MoEConfig:
    options: dict[str, Any] = {"router": RouterConfig("linear"), "up_bias": True, "output_bias": True, **more}
    return MoEConfig(HIDDEN, OUTPUT, "gelu", False, **{"offsets": (2, 3, 6, 8), **options})


def copies_config(copies: int = 3, *, shards: int = 1, shared: bool = False, gated: bool = True, **more: Any) -> MoEConfig:
    first = NEURONS if shared else 0
    offsets = tuple(range(first, first + NEURONS * copies + 1, NEURONS // shards))
    return MoEConfig(
        HIDDEN, OUTPUT, "silu", gated, offsets, RouterConfig("linear"), normalize=True, up_bias=True, gate_bias=gated,
        output_bias=True, neurons=NEURONS, shards=shards, **more,
    )  # fmt: skip


def tokens(count: int = 20) -> Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def output(layer: MoELayer, weights: DenseWeights, x: Tensor) -> Tensor:
    return dense_function(layer, weights)(layer, x)


@pytest.mark.parametrize(
    ("options", "equals"),
    [
        ({}, "the layer as it is"),
        ({"top_k": 3}, "the layer as it is"),
        ({"normalize": True}, "the layer as it is"),
        ({"top_k": 1}, "the layer with all experts on"),
        ({"top_k": 2, "idle": True, "selection_bias": True}, "the layer with all experts on"),
        ({"threshold": 0.5, "normalize": True}, "the layer with all experts on"),
        ({"smear": True, "offsets": (2, 4, 6, 8)}, "the layer with all experts on"),
    ],
)
def test_concatenated_it_equals_what_it_says(options: dict[str, Any], equals: str) -> None:
    layer, x = drawn(split_config(**options)), tokens()
    assert Concatenate().equals(layer.config) == equals
    Concatenate().check(layer.config, 8)
    found = output(layer, Concatenate().gather(layer), x)
    if "all experts on" in equals:
        assert not torch.allclose(found, layer(x))
        layer.config = replace(layer.config, top_k=None, threshold=None, smear=False)
    torch.testing.assert_close(found, layer(x))


def test_concatenated_experts_of_a_split_are_the_dense_network() -> None:
    site = dense_site(gated=True, dtype=torch.float64)
    layer = MoELayer.from_spec(site, split_spec(site, experts=4, shared=4))
    x = torch.randn(9, site.hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(output(layer, Concatenate().gather(layer), x), site.forward(x))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("shards", "shared"), [(1, False), (1, True), (3, False), (4, True)])
def test_equal_copies_give_back_what_they_are_copies_of(shards: int, shared: bool, gated: bool) -> None:
    """The scale of shards, and of copies beside a shared one, is undone."""
    site = random_site(gated=gated, biases=True, activation="silu")
    graph = graph_of(site)
    UpcycleExperts(copies=3, shards=shards, shared=shared).run(graph, PassContext())
    layer = MoELayer.from_spec(site, graph.specs[site.path])
    for strategy in (Mean(), SVD(rank=site.hidden)):
        strategy.check(layer.config, site.neurons)
        found = strategy.gather(layer)
        assert found.keys() == site.places.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, getattr(site, name).read(), msg=name)
    assert weight_distance(layer, Mean().gather(layer)) < 1e-6


def test_the_mean_weighs_a_shared_copy_as_all_routed_ones_together() -> None:
    layer = drawn(copies_config(copies=3, shared=True, gated=False))
    found = Mean().gather(layer)
    shared, *routed = torch.split(layer.down.detach(), NEURONS)
    torch.testing.assert_close(found["down"], 2 * (0.5 * shared + 0.5 * sum(routed) / 3))
    assert layer.output_bias is not None
    assert torch.equal(found["output_bias"], layer.output_bias)


def test_svd_keeps_the_largest_singular_values_of_each_copy() -> None:
    layer = drawn(copies_config(copies=2, gated=False))
    copies = [copy.detach() for copy in torch.split(layer.up, NEURONS)]
    cut = []
    for copy in copies:
        u, s, v = torch.linalg.svd(copy)
        cut.append(sum(s[i] * torch.outer(u[:, i], v[i]) for i in range(3)))  # 6 singular values shared by 2 copies
    torch.testing.assert_close(SVD().gather(layer)["up"], (cut[0] + cut[1]) / 2)
    torch.testing.assert_close(SVD(total="sum").gather(layer)["up"], cut[0] + cut[1])
    assert layer.up_bias is not None
    torch.testing.assert_close(SVD().gather(layer)["up_bias"], layer.up_bias.view(2, NEURONS).mean(0))


def test_svd_of_full_rank_is_the_mean() -> None:
    layer = drawn(copies_config(copies=3, shared=True))
    everything, mean = SVD(rank=6).gather(layer), Mean().gather(layer)
    torch.testing.assert_close(everything["down"], mean["down"])


def test_the_distance_of_weights_is_relative() -> None:
    layer = drawn(copies_config(copies=2, gated=False))
    mean = Mean().gather(layer)
    both = [torch.cat([t.detach()[i * NEURONS : (i + 1) * NEURONS].flatten() for t in parts(layer)]) for i in range(2)]
    middle = torch.cat([mean[name].flatten() for name in ("up", "down", "up_bias")])
    expected = sum((one - middle).square().sum() for one in both) / sum(one.square().sum() for one in both)
    assert weight_distance(layer, mean) == pytest.approx(float(expected) ** 0.5)
    assert weight_distance(drawn(split_config()), {}) == 0


def parts(layer: MoELayer) -> tuple[Tensor, Tensor, Tensor]:
    assert layer.up_bias is not None
    return layer.up, layer.down, layer.up_bias


def test_weights_keep_their_dtype() -> None:
    layer = drawn(copies_config()).bfloat16()
    for strategy in (Mean(), SVD()):
        assert {value.dtype for value in strategy.gather(layer).values()} == {torch.bfloat16}


REFUSED: list[tuple[str, Gathering, MoEConfig, int, str]] = [
    ("copies, concatenated", Concatenate(), copies_config(), 8, "hold 24 neurons, .* has place for 8: its experts are copies"),
    ("neurons gone", Concatenate(), split_config(), 9, "hold 8 neurons, .* place for 9: neurons were left out or copied"),
    ("gates that differ", Concatenate(), split_config(gate_rule="softmax"), 8, "its gates are softmax values"),
    ("a low-rank term", Concatenate(), split_config(rank=2), 8, "its low-rank term stands beside the neurons"),
    ("a split, by mean", Mean(), split_config(), 8, "its experts are parts of its dense network, not copies"),
    ("a split, by svd", SVD(), split_config(), 8, "its experts are parts of its dense network, not copies"),
    ("copies of another size", Mean(), copies_config(), 9, "its copies have 8 neurons, its dense network has place for 9"),
    ("copies with a low-rank term", Mean(), replace(copies_config(), rank=1), 8, "its low-rank term"),
    ("more rank than there is", SVD(rank=7), copies_config(), 8, "rank of svd is 7, its matrices have 6 singular values"),
]


@pytest.mark.parametrize(("strategy", "config", "neurons", "message"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_cannot_be_expressed_is_refused(strategy: Gathering, config: MoEConfig, neurons: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        strategy.check(config, neurons)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SVD(rank=0), "rank of svd is 0: choose 1 or more"),
        (lambda: SVD(total="max"), "total of svd is 'max': choose mean or sum"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: gathering("means"), "experts cannot be gathered by 'means': did you mean 'mean'"),
    ],
)
def test_strategies_check_their_options(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_strategies_are_known_by_name() -> None:
    assert {name: gathering(name) for name in GATHERINGS} == dict(GATHERINGS)
    assert list(GATHERINGS) == ["concatenate", "mean", "svd"]
