"""The eager layer and the operator against the float64 reference, and the layer's life: specs, states, copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from layers.dense_sites import dense_site, split_spec
from layers.layer_cases import by_operator, case_layer, case_tensors, expected, relative_error
from moe_cases import VARIANTS, Case, cases, random_case
from moeify.errors import ConversionError, UsageError
from moeify.ir.feed_forward import Rewrite
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.ir.moe_spec import Compensation, MoESpec, Router
from moeify.layers.moe_layer import MoELayer

#: Largest difference / largest output. bfloat16 has 8 bits of mantissa, and h is rounded once more than y.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("caption", VARIANTS)
def test_every_variant_equals_the_reference(caption: str, dtype: torch.dtype) -> None:
    case = random_case(np.random.default_rng(0), VARIANTS[caption])
    truth, x = expected(case, dtype), case_tensors(case, dtype)["x"]
    layer = case_layer(case, dtype)
    assert relative_error(layer(x), truth) <= TOLERANCE[dtype]
    with torch.no_grad():
        assert relative_error(layer.eval()(x), truth) <= TOLERANCE[dtype]
        assert relative_error(by_operator(case, case_tensors(case, dtype)), truth) <= TOLERANCE[dtype]


@settings(max_examples=150, deadline=None)
@given(cases())
def test_any_case_equals_the_reference(case: Case) -> None:
    truth, tensors = expected(case, torch.float64), case_tensors(case, torch.float64)
    with torch.no_grad():
        assert relative_error(case_layer(case, torch.float64)(tensors["x"]), truth) <= 1e-12
        assert relative_error(by_operator(case, tensors), truth) <= 1e-12


@pytest.mark.parametrize("gated", [False, True])
def test_all_on_equals_the_dense_network(gated: bool) -> None:
    site = dense_site(gated=gated, dtype=torch.float64)
    x = torch.randn(7, site.hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with_router = split_spec(site, experts=4, shared=4)
    for spec in (with_router, with_router.all_on(), replace(with_router, top_k=4)):
        layer = MoELayer.from_spec(site, spec)
        torch.testing.assert_close(layer(x), site.forward(x))
        torch.testing.assert_close(layer.eval()(x), site.forward(x))


def test_without_router_route_says_all_on() -> None:
    site = dense_site()
    layer = MoELayer.from_spec(site, split_spec(site, experts=3).all_on())
    routing = layer.route(torch.ones(2, site.hidden))
    assert routing.chosen.all()
    assert routing.gates.tolist() == [[1.0] * 3] * 2
    assert routing.scores.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_spec_names_and_dtypes_are_those_of_the_spec(dtype: torch.dtype) -> None:
    site = dense_site(gated=True, dtype=dtype, rewrite=Rewrite("submodule", {"ffn": "mlp"}, 0.1, 0.2))
    compensation = Compensation(torch.zeros(4, 6), torch.ones(2, 6), torch.zeros(2, 6))
    spec = replace(
        split_spec(site, experts=4, top_k=2),
        selection_bias=torch.full((4,), 0.1),
        gate_rule="sigmoid",
        compensation=compensation,
    )
    layer = MoELayer.from_spec(site, spec)
    state, tensors = layer.state_dict(), spec.tensors(site)
    assert state.keys() == tensors.keys()
    for name, value in tensors.items():
        assert state[name].dtype == value.dtype == (torch.float32 if name == "selection_bias" else dtype)
        assert torch.equal(state[name], value)
    assert {name for name, _ in layer.named_parameters()} == tensors.keys() - {"selection_bias"}
    assert (layer.config.hidden_dropout, layer.config.output_dropout) == (0.1, 0.2)


def test_from_spec_takes_the_memory_of_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    site = dense_site()
    spec = split_spec(site, experts=3)
    tensors = spec.tensors(site)
    monkeypatch.setattr(MoESpec, "tensors", lambda *_: tensors)
    layer = MoELayer.from_spec(site, spec)
    assert {name: value.data_ptr() for name, value in layer.state_dict().items()} == {
        name: value.data_ptr() for name, value in tensors.items()
    }


@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "pickle"])
def test_copies_keep_config_and_output(how: str) -> None:
    site = dense_site()
    layer = MoELayer.from_spec(site, split_spec(site, experts=4, top_k=3)).eval()
    layer.top_k, layer.threshold = 2, -0.5
    if how == "state_dict":
        twin = MoELayer(layer.config).eval()
        twin.load_state_dict(layer.state_dict())
    elif how == "deepcopy":
        twin = copy.deepcopy(layer)
    else:
        twin = pickle.loads(pickle.dumps(layer))
    assert (twin.config.top_k, twin.config.threshold) == (twin.top_k, twin.threshold) == (2, -0.5)
    x = torch.randn(5, site.hidden, generator=torch.Generator().manual_seed(2))
    assert torch.equal(twin(x), layer(x))
    twin.top_k = 1
    assert layer.top_k == 2


def test_the_budget_steers_the_choice() -> None:
    site = dense_site()
    layer = MoELayer.from_spec(site, split_spec(site, experts=4, top_k=3))
    x = torch.randn(5, site.hidden, generator=torch.Generator().manual_seed(2))
    assert layer.route(x).chosen.sum(-1).tolist() == [3] * 5
    layer.top_k = 1
    assert layer.route(x).chosen.sum(-1).tolist() == [1] * 5
    layer.top_k, layer.threshold = None, 0.0
    assert torch.equal(layer.route(x).chosen, layer.route(x).scores >= 0)


def test_from_spec_refuses_tensors_of_another_shape() -> None:
    site = dense_site()
    spec = replace(split_spec(site, experts=3), router=Router(RouterConfig("linear"), {"weight": torch.zeros(3, 5)}))
    with pytest.raises(
        ConversionError, match=r"^mlp: the tensors of the spec do not fit its MoE layer: .*router\.weight"
    ) as info:
        MoELayer.from_spec(site, spec)
    assert "\n" not in str(info.value)


SMALL = MoEConfig(hidden=4, output=4, activation="relu", gated=False, offsets=(0, 2, 4), router=RouterConfig("linear"))
WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "k too large": (lambda: setattr(MoELayer(SMALL), "top_k", 3), "top_k is 3: choose from 1 to 2"),
    "k of zero": (lambda: setattr(MoELayer(SMALL), "top_k", 0), "top_k is 0: choose from 1 to 2"),
    "threshold without router": (
        lambda: setattr(MoELayer(replace(SMALL, router=None)), "threshold", 0.5),
        "needs a router",
    ),
    "average key of absent biases": (
        lambda: MoELayer(replace(SMALL, router=RouterConfig("average-key", bias=True))),
        "an average-key router with a bias needs keys with a bias",
    ),
    "mlp without width": (lambda: MoELayer(replace(SMALL, router=RouterConfig("mlp"))), "width of an mlp router is None"),
    "unknown activation of the router": (
        lambda: MoELayer(replace(SMALL, router=RouterConfig("mlp", width=2, activation="rleu"))),
        "did you mean 'relu'",
    ),
}


@pytest.mark.parametrize("caption", WRONG)
def test_wrong_shapes_are_refused(caption: str) -> None:
    action, message = WRONG[caption]
    with pytest.raises(UsageError, match=message):
        action()
