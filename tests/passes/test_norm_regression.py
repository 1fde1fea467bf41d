from __future__ import annotations

import pytest
import torch

from moeify.errors import ConversionError
from moeify.ir.moe_spec import MoESpec
from moeify_passes.expert_rows import expert_norms, expert_rows
from moeify_passes.rewrite.insert_router import InsertRouter
from moeify_passes.routers.held_out import held_out
from moeify_passes.routers.linear_fit import fit_linear
from moeify_passes.routers.mlp_fit import MlpShape, fit_mlp
from moeify_passes.routers.norm_regression import NormRegression
from passes.tiny import correlated_inputs, graph_of, planted_site, random_site, sampled_context


def shares(by: NormRegression, tokens: int = 2000) -> dict[str, float]:
    """Figures of a router over experts that are the planted groups."""
    planted = planted_site(groups=4)
    graph = graph_of(planted.site)
    graph.specs["planted"] = MoESpec(tuple(torch.nonzero(planted.groups == g).flatten() for g in range(4)))
    context = sampled_context(graph, correlated_inputs(tokens))
    InsertRouter(top_k=1, by=by).run(graph, context)
    return context.measurements["planted"]


@pytest.mark.parametrize(
    ("by", "floor"),
    [
        (NormRegression(), 0.9),
        (NormRegression(target="neurons"), 0.9),
        (NormRegression(width=32, steps=600, learning_rate=5e-3), 0.97),
        (NormRegression(width=32, steps=600, learning_rate=5e-3, activation="relu"), 0.97),
    ],
    ids=["linear", "linear, of neurons", "tanh", "relu"],
)
def test_beats_chance_and_nears_the_oracle(by: NormRegression, floor: float) -> None:
    figures = shares(by)
    assert figures["random_share"] < 0.6
    assert floor < figures["router_share"] <= 1


def test_the_linear_fit_is_the_least_squares_solution() -> None:
    """Against torch.linalg.lstsq in float64, with a column that never varies and columns of very different scale."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=generator) * 10.0 ** torch.arange(-3, 3) + 4
    x[:, 2] = 5.0
    y = torch.randn(300, 3, generator=generator) + x[:, :1]
    weight, bias = fit_linear(x, y, ridge=1e-12)
    design = torch.cat([x[:, [0, 1, 3, 4, 5]], torch.ones(300, 1)], dim=1).double()
    expected = design @ torch.linalg.lstsq(design, y.double()).solution
    torch.testing.assert_close(x.double() @ weight.double().T + bias, expected, rtol=1e-3, atol=1e-3)
    assert weight[:, 2].tolist() == [0, 0, 0]


def test_the_ridge_shrinks_weights_and_keeps_the_mean() -> None:
    x, generator = correlated_inputs(200), torch.Generator().manual_seed(0)
    y = x @ torch.randn(12, 2, generator=generator) + 3
    sizes = []
    for ridge in (1e-6, 1.0, 1e6):
        weight, bias = fit_linear(x, y, ridge)
        sizes.append(float(weight.norm()))
        torch.testing.assert_close((x @ weight.T + bias).mean(0), y.mean(0), rtol=1e-3, atol=1e-3)
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[2] < 1e-3 * sizes[0]


def test_fewer_tokens_than_inputs_are_no_trouble() -> None:
    assert 0 < shares(NormRegression(), tokens=8)["router_share"] <= 1


def test_the_mlp_fits_in_inference_mode_and_without_the_global_generator() -> None:
    x = correlated_inputs(300)
    y = x[:, :3].abs()
    state = torch.get_rng_state()
    with torch.inference_mode():
        tensors = [
            fit_mlp(MlpShape(16, "tanh", 300, 1e-2), (x[:250], y[:250]), (x[250:], y[250:]), torch.Generator().manual_seed(0))
            for _ in range(2)
        ]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    found = tensors[0]
    predicted = (torch.tanh(x @ found["weight_in"].T + found["bias_in"]) @ found["weight_out"].T + found["bias_out"]).abs()
    assert float((predicted - y)[250:].square().mean()) < 0.3 * float((y - y[:250].mean(0))[250:].square().mean())


def test_norms_are_those_of_the_experts_outputs() -> None:
    site, x = random_site(gated=True, biases=True), correlated_inputs(20)
    spec = MoESpec((torch.arange(10, 30), torch.arange(30, 48)), torch.arange(10))
    h, rows = site.neuron_outputs(x), expert_rows(site, spec)
    expected = torch.stack([(h[:, e] @ site.down.read()[e]).norm(dim=1) for e in spec.experts], dim=1)
    torch.testing.assert_close(expert_norms(rows, x), expected)
    torch.testing.assert_close(
        expert_norms(rows, x, of_neurons=True), torch.stack([h[:, e].norm(dim=1) for e in spec.experts], dim=1)
    )


@pytest.mark.parametrize(("tokens", "held"), [(2, 1), (10, 1), (99, 9), (100, 10), (1000, 100), (8192, 819)])
def test_a_tenth_is_held_out_in_runs(tokens: int, held: int) -> None:
    inputs = torch.arange(float(tokens))[:, None]
    fit, kept = held_out(random_site(), inputs, torch.Generator().manual_seed(0))
    assert abs(len(kept) - held) <= 10
    assert len(kept) > 0
    assert torch.cat([fit, kept]).sort(dim=0).values.equal(inputs)
    runs = 1 + int((kept.diff(dim=0) != 1).sum())
    assert runs <= 10


def test_refuses_a_sample_that_is_too_small() -> None:
    graph = graph_of(random_site("a"))
    graph.specs["a"] = MoESpec((torch.arange(48),))
    with pytest.raises(ConversionError, match="a: the calibration sample holds 1 tokens; calibrate on more of them"):
        InsertRouter(by=NormRegression()).run(graph, sampled_context(graph, torch.zeros(1, 12)))
