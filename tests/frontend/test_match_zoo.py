"""Every architecture of the zoo: no FFN is missing, none is false, and the handles hold the weights that compute it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from moeify.frontend.match import Call, match
from moeify.frontend.trace import trace
from moeify.ir.text import refusal_text, site_text
from moeify.layers.channels import features_last
from traced_zoo import traced_zoo
from zoo import WITH_SITES, ZOO


class Recorder(fx.Interpreter):
    """Runs a graph and keeps every value."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.seen[n] = super().run_node(n)
        return self.seen[n]


def values_of(name: str) -> dict[fx.Node, Any]:
    zoo, traced, _ = traced_zoo(name)
    recorder = Recorder(traced.graph)
    with torch.no_grad():
        recorder.run(*traced.bind(zoo.model, zoo.example).values(), enable_io_processing=False)
    return recorder.seen


@pytest.mark.parametrize("name", ZOO)
def test_sites(name: str) -> None:
    zoo, _, found = traced_zoo(name)
    assert [(s.path, s.kind, s.activation, s.hidden, s.neurons) for s in found.sites] == zoo.sites
    assert {s.rewrite.way for s in found.sites} == ({zoo.way} if zoo.way else set())


@pytest.mark.parametrize("name", ZOO)
def test_golden(name: str, golden: Callable[[str, str], None]) -> None:
    _, _, found = traced_zoo(name)
    text = "\n".join([*map(site_text, found.sites), *map(refusal_text, found.refusals)])
    golden(f"sites/{name}.txt", text + "\n")


@pytest.mark.parametrize("name", WITH_SITES)
def test_handles_compute_the_ffn(name: str) -> None:
    _, _, found = traced_zoo(name)
    seen = values_of(name)
    for site in found.sites:
        assert len(found.calls[site.path]) == site.calls
        for call in found.calls[site.path]:
            x, y = (features_last(v) if call.channels else v for v in (seen[call.x], seen[call.y]))
            assert x.shape[:-1] == y.shape[:-1]
            ours = site.forward(x.double().reshape(-1, site.hidden))
            torch.testing.assert_close(ours, y.double().reshape(-1, site.output), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", WITH_SITES)
def test_shapes_of_handles(name: str) -> None:
    for site in traced_zoo(name)[2].sites:
        handles = (site.up, site.down, site.gate, site.up_bias, site.gate_bias, site.output_bias)
        for weight in handles:
            assert weight is None or weight.shape == tuple(weight.read().shape)
        assert site.up.shape == (site.neurons, site.hidden)
        assert site.down.shape == (site.neurons, site.output)


def _reached(node: fx.Node, through: frozenset[fx.Node]) -> set[fx.Node]:
    """What the nodes between need: everything outside that they read."""
    return {n for inner in (node, *through) for n in inner.all_input_nodes} - through - {node}


@pytest.mark.parametrize("name", WITH_SITES)
def test_calls_can_be_cut_out(name: str) -> None:
    """Between x and y nothing is read but x, weights and sizes, and nothing inside is read from outside."""
    _, traced, found = traced_zoo(name)
    weights = set(traced.lifted) | set(traced.constants)
    for calls in found.calls.values():
        for call in calls:
            reached = _reached(call.y, call.inside)
            outside = {n for n in reached if n.name not in weights and isinstance(n.meta.get("val"), Tensor)}
            assert outside == {call.x}
            assert all(user in call.inside or user is call.y for inner in call.inside for user in inner.users)


@pytest.mark.slow
def test_dropout_is_found() -> None:
    rates = {}
    for name in ("encoder-pre-relu", "nanogpt", "gpt2", "bart", "t5"):
        rewrites = [site.rewrite for site in traced_zoo(name)[2].sites]
        rates[name] = {(r.way, r.hidden_dropout, r.output_dropout) for r in rewrites}
    assert rates == {
        "encoder-pre-relu": {("stash", 0.1, 0.0)},  # the dropout behind the FFN stays where it is
        "nanogpt": {("submodule", 0.0, 0.2)},
        "gpt2": {("submodule", 0.0, 0.1)},
        "bart": {("identity", 0.0, 0.0)},
        "t5": {("submodule", 0.1, 0.0)},
    }


def test_a_shared_ffn_is_one_site_with_calls() -> None:
    _, _, found = traced_zoo("albert")
    (site,) = found.sites
    calls: tuple[Call, ...] = found.calls[site.path]
    assert site.calls == len(calls) == 3
    assert len({call.x for call in calls}) == 3


def test_handles_read_the_live_model() -> None:
    zoo = ZOO["residual-stack"]()
    site = match(zoo.model, trace(zoo.model, zoo.example)).sites[0]
    with torch.no_grad():
        zoo.model.get_parameter(site.up.parameter).fill_(3.0)
    assert bool((site.up.read() == 3.0).all())
    assert site.up.read().data_ptr() == zoo.model.get_parameter(site.up.parameter).data_ptr()
