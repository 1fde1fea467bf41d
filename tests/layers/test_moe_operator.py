"""The operator `moeify::moe` in graphs: one node under torch.compile and torch.export, equal to the eager layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from layers.dense_sites import dense_site, split_spec
from layers.layer_cases import OPERATOR_INPUTS, case_tensors
from moe_cases import VARIANTS, random_case
from moeify.ir.feed_forward import Rewrite
from moeify.ir.moe_config import RouterConfig
from moeify.ir.moe_spec import Compensation, MoESpec, Router
from moeify.layers.moe_layer import MoELayer
from moeify.layers.operator import moe

SITE = dense_site(gated=True)
SPLIT = split_spec(SITE, experts=4, shared=4, top_k=2)
MLP = Router(RouterConfig("mlp", width=3, activation="tanh", output="abs"), {
    "weight_in": torch.linspace(-1, 1, 18).view(3, 6), "weight_out": torch.linspace(-1, 2, 12).view(4, 3),
})  # fmt: skip
SPECS: dict[str, MoESpec] = {
    "top-2, gate one": SPLIT,
    "all on": replace(SPLIT, top_k=None),
    "all on, no router": SPLIT.all_on(),
    "softmax, normalised, idle, low rank": replace(
        SPLIT, gate_rule="softmax", normalize=True,
        compensation=Compensation(torch.ones(4, 6), torch.ones(1, 6), torch.ones(1, 6)),
    ),
    "threshold, selection bias, mlp router": replace(
        SPLIT, top_k=None, threshold=0.6, gate_rule="sigmoid", selection_bias=torch.tensor([0.0, 0.1, -0.1, 0.2]), router=MLP
    ),
    "average key": replace(SPLIT, router=Router(RouterConfig("average-key"), {"weight": torch.zeros(4, 6)})),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def outputs_and_gradients(layer: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor | None]:
    layer.zero_grad()
    x = x.clone().requires_grad_()
    y = call(x)
    torch.autograd.backward(y.square().sum())
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]


def inputs(*lead: int) -> Tensor:
    return torch.randn(*lead, SITE.hidden, generator=torch.Generator().manual_seed(5))


def check_compiled(layer: MoELayer, backend: str) -> None:
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for x in (inputs(2, 5), inputs(3, 7)):
        wanted = [None if t is None else t.clone() for t in outputs_and_gradients(layer, layer, x)]
        for found, eager in zip(outputs_and_gradients(layer, compiled, x), wanted):
            assert (found is None) == (eager is None)
            if found is not None:
                torch.testing.assert_close(found, eager)


@pytest.mark.sampled
@pytest.mark.parametrize("caption", SPECS)
def test_compiled_layer_equals_eager(caption: str) -> None:
    check_compiled(MoELayer.from_spec(SITE, SPECS[caption]), "aot_eager")


@pytest.mark.slow
def test_compiled_by_inductor_equals_eager() -> None:
    check_compiled(MoELayer.from_spec(SITE, SPECS["top-2, gate one"]), "inductor")


def test_a_new_budget_reaches_the_compiled_layer() -> None:
    layer = MoELayer.from_spec(SITE, SPECS["top-2, gate one"])
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    before = compiled(inputs(5))
    layer.top_k = 1
    torch.testing.assert_close(compiled(inputs(5)), layer(inputs(5)))
    assert not torch.allclose(before, layer(inputs(5)))


@pytest.mark.slow
def test_compiled_under_autocast_equals_eager() -> None:
    layer = MoELayer.from_spec(SITE, SPECS["top-2, gate one"])
    with torch.autocast("cpu", torch.bfloat16):
        y = torch.compile(layer, fullgraph=True, backend="aot_eager")(inputs(5))
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y, layer(inputs(5)))


def test_compiled_training_keeps_hidden_dropout() -> None:
    site = dense_site(neurons=64, rewrite=Rewrite("submodule", {"ffn": "mlp"}, hidden_dropout=0.5))
    layer = MoELayer.from_spec(site, split_spec(site, experts=4, top_k=2))
    compiled = torch.compile(layer, backend="eager")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = compiled(inputs(5)), compiled(inputs(5))
    assert not torch.equal(first, second)
    layer.eval()
    torch.testing.assert_close(compiled(inputs(5)), layer(inputs(5)))


@pytest.mark.sampled
@pytest.mark.parametrize(("caption", "strict"), [*((caption, False) for caption in SPECS), ("top-2, gate one", True)])
def test_export_gives_one_node_a_layer(caption: str, strict: bool) -> None:
    layer = MoELayer.from_spec(SITE, SPECS[caption]).eval()
    model = nn.Sequential(layer, copy.deepcopy(layer)).eval()
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(model, (inputs(2, 5),), dynamic_shapes=({0: auto, 1: auto},), strict=strict)
    targets = [node.target for node in exported.run_decompositions({}).graph.nodes]
    assert targets.count(torch.ops.moeify.moe.default) == 2
    assert not any("nonzero" in str(target) or "mm" in str(target) for target in targets)
    torch.testing.assert_close(exported.module()(inputs(3, 4)), model(inputs(3, 4)))


def test_a_plain_export_shows_the_router_and_the_layer_alone() -> None:
    layer = MoELayer.from_spec(SITE, SPLIT).eval()
    exported = torch.export.export(layer, (inputs(5),))
    calls = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert calls == ["aten.linear.default", "moeify.moe.default"]


def test_export_on_the_meta_device() -> None:
    layer = MoELayer(SPLIT.config(SITE), device="meta").eval()
    exported = torch.export.export(layer, (inputs(5).to("meta"),))
    assert [n.target for n in exported.graph.nodes].count(torch.ops.moeify.moe.default) == 1
    (offsets,) = exported.constants.values()
    assert offsets.tolist() == list(SPLIT.offsets)


@pytest.mark.parametrize("caption", ["everything", "no token", "top-2, gate one", "all on, softmax"])
def test_the_operator_keeps_the_rules_of_operators(caption: str) -> None:
    case = random_case(np.random.default_rng(0), VARIANTS[caption])
    tensors = case_tensors(case, torch.float32)
    for name in ("x", "scores", "up", "down"):
        tensors[name].requires_grad_()
    # AOT dispatch with dynamic shapes needs tensors that have elements.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (*(tensors[name] for name in OPERATOR_INPUTS), *case.attributes.values())
    assert set(torch.library.opcheck(moe, arguments, test_utils=tests).values()) == {"SUCCESS"}


def test_the_schema_is_that_of_the_definition() -> None:
    names = [argument.name for argument in torch.ops.moeify.moe.default._schema.arguments]
    assert names == [*OPERATOR_INPUTS, "activation", "gate_rule", "normalize", "detach_sum"]  # the last for the gradient alone


@pytest.mark.parametrize("detach_sum", [False, True])
def test_a_detached_sum_has_the_same_gradient_in_the_operator(detach_sum: bool) -> None:
    case = random_case(np.random.default_rng(0), VARIANTS["top-2, softmax, normalised"])
    gradients = []
    for run in (moe, run_eagerly):
        tensors = case_tensors(case, torch.float64)
        tensors["scores"].requires_grad_()
        run(*(tensors[name] for name in OPERATOR_INPUTS), *case.attributes.values(), detach_sum).square().sum().backward()
        gradients.append(tensors["scores"].grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    assert float(gradients[0].abs().max()) > 1e-3


def run_eagerly(*arguments: Any) -> Tensor:
    """What `moe` computes, differentiated by torch itself."""
    with torch.enable_grad():
        y: Tensor = moe._init_fn(*arguments)  # the function that the operator was made of
    return y
