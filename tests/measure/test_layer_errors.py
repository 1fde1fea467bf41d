"""The errors of one layer against the layer itself, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_config import RouterConfig
from moeify.ir.moe_spec import Compensation, MoESpec, Router
from moeify.ir.token_weights import damped
from moeify.layers.moe_layer import MoELayer
from moeify.measure.dense_ffn import DenseFFN
from moeify.measure.layer_errors import NAMES, LayerSample, layer_errors
from moeify.measure.nulls import oracle
from moeify.measure.substitute import computed_by
from passes.tiny import HIDDEN, OUTPUT, SITES, correlated_inputs, random_site

SAMPLE = correlated_inputs(500)


def routed(site: FeedForward, **options: Any) -> MoESpec:
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(site.neurons, generator=generator)
    router = Router(RouterConfig("linear"), {"weight": torch.randn(5, HIDDEN, generator=generator)})
    experts = torch.split_with_sizes(order[6:], [3, 6, 9, 12, site.neurons - 36])
    return MoESpec(experts, order[:6], router, **({"top_k": 2} | options))


def errors(site: FeedForward, spec: MoESpec, seed: int = 0) -> Any:
    return layer_errors(site, spec, LayerSample(SAMPLE[:300], SAMPLE[300:], held_out=True), seed)


def by_hand(site: FeedForward, y: Tensor) -> float:
    """The error of outputs y [tokens, output] on the held tokens."""
    x = SAMPLE[300:]
    expected = site.forward(x).double()
    own = expected if site.output_bias is None else expected - site.output_bias.read().double()
    weights = damped(own.square().sum(1))
    return float(weights @ (expected - y).square().sum(1) / (weights @ own.square().sum(1)))


NEW = torch.randn(48, OUTPUT, generator=torch.Generator().manual_seed(4))

CASES: dict[str, Callable[[FeedForward], MoESpec]] = {
    "top-k": routed,
    "threshold": lambda site: routed(site, top_k=None, threshold=0.5),
    "softmax gates": lambda site: routed(site, gate_rule="softmax", normalize=True),
    "new output rows": lambda site: routed(site, weights={"down": NEW, "output_bias": NEW[0]}),
    "new rows": lambda site: routed(site, weights={"up": correlated_inputs(48)}),
    "compensated": lambda site: routed(
        site, compensation=Compensation(NEW[:5], correlated_inputs(2), NEW[:2])
    ),
    "neurons left out": lambda site: MoESpec((torch.arange(20),)),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["gated with biases", "two-matrix"])
@pytest.mark.parametrize("case", CASES)
def test_errors_are_those_of_the_layer(case: str, kind: str) -> None:
    site, x = SITES[kind](), SAMPLE[300:]
    spec = CASES[case](site)
    found, layer = errors(site, spec), MoELayer.from_spec(site, spec).eval()
    with torch.no_grad():
        chosen = layer.route(x).chosen
        assert found.errors["converted"] == pytest.approx(by_hand(site, layer(x)), rel=1e-4)
        with computed_by({"": layer}, oracle({"": layer}, {"": DenseFFN.of_site(site)}).compute):
            ideal = by_hand(site, layer(x))
    routes = spec.router is not None
    assert found.chooses is routes
    assert list(found.errors) == list(found.fractions) == [name for name in NAMES if routes or name != "oracle-routing"]
    assert found.errors.get("oracle-routing", ideal) == pytest.approx(ideal, rel=1e-4)
    sizes = torch.tensor(layer.config.sizes, dtype=torch.float64)
    rows = float((chosen.double() @ sizes).mean())
    fraction = layer.config.active_fraction(site.neurons, rows * layer.config.experts / float(sizes.sum()))
    assert found.fractions["converted"] == pytest.approx(fraction)
    assert found.fractions["static-mask"] == pytest.approx(min(fraction, 1), abs=0.51 / site.neurons)
    assert found.fractions["full-rank-compensation"] == pytest.approx(fraction + HIDDEN * OUTPUT / site.parameters)
    assert (found.tokens, found.fitted, found.held_out) == (200, 300, True)


def test_a_term_and_a_mask_help() -> None:
    """On data whose inputs go together: less is missing with the linear term, and good neurons beat random ones."""
    found = errors(site := random_site("planted", gated=True, activation="silu"), routed(site)).errors
    assert found["full-rank-compensation"] < found["converted"]
    assert found["static-mask"] < found["random-partition"]


def test_what_computes_the_dense_ffn_has_no_error() -> None:
    site = SITES["gated bfloat16"]()
    found = errors(site, routed(site, top_k=None))
    assert found.chooses is False
    assert max(found.errors["converted"], found.errors["static-mask"], found.errors["full-rank-compensation"]) < 1e-10


def test_the_seed_decides_the_random_partition() -> None:
    site = random_site()
    first, again, other = (errors(site, routed(site), seed) for seed in (0, 0, 1))
    assert first == again
    assert first.errors["random-partition"] != other.errors["random-partition"]
