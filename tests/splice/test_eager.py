"""Splicing into eager models: the user's class stays and everything that people do with a model keeps working."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from converted import EXPERTS, call, converted, distance, main_output, opened
from moeify.errors import InputError
from moeify.ir.feed_forward import Rewrite
from moeify.ir.model_graph import ModelGraph
from moeify.layers.budget import moe_layers, set_top_k
from moeify.layers.dense_ffn import Concatenate
from moeify.layers.moe_layer import MoELayer
from moeify.splice.densify import dense_weights, put_back
from moeify.splice.eager import install
from zoo import WITH_SITES, WRITERS, ZOO, Zoo

#: One model for each way of rewriting, and a decoder.
ONE_EACH = ("bert", "llama", "inline", "bare-block", "encoder-pre-gelu", "squeezebert", "conv-1d", "conv-2d")


@dataclass(frozen=True)
class Case:
    """A converted model, what the dense one gave for the example, and what it was made of."""

    zoo: Zoo
    graph: ModelGraph
    kind: type[nn.Module]
    expected: Tensor
    dense_weights: set[str]
    names: list[str]
    text: str


@pytest.fixture(params=WITH_SITES, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    dense, graph = opened(request.param)
    sites = graph.host.find()[0]
    weights = {weight.parameter for site in sites for weight in (site.up, site.gate, site.down) if weight is not None}
    expected = main_output(dense.run())
    names = [name for name, _ in (*dense.model.named_parameters(), *dense.model.named_buffers())]
    zoo, graph = converted(request.param)
    return Case(zoo, graph, type(dense.model), expected, weights, names, repr(dense.model))


def test_all_experts_on_equals_dense(case: Case) -> None:
    assert type(case.graph.model) is case.kind
    assert len(moe_layers(case.graph.model)) == len(case.zoo.sites)
    assert distance(main_output(case.zoo.run()), case.expected) < 3e-6


def test_a_chosen_few_differ_from_dense_and_stay_finite(case: Case) -> None:
    set_top_k(case.graph.model, 1)
    found = main_output(case.zoo.run())
    set_top_k(case.graph.model, EXPERTS)
    assert torch.isfinite(found).all()
    assert distance(found, case.expected) > 1e-4


def test_no_dense_weight_is_left_behind(case: Case) -> None:
    assert not case.dense_weights & set(case.graph.model.state_dict())


def test_every_part_gets_a_gradient(case: Case) -> None:
    model = copy.deepcopy(case.graph.model).train()  # a copy: batch norms follow what they see in training
    set_top_k(model, 2)
    torch.autograd.backward(main_output(call(model, case.zoo.example)).float().square().sum())
    layers = moe_layers(model).items()
    found = {f"{path}.{name}": getattr(layer, name).grad for path, layer in layers for name in ("up", "down")}
    for name, gradient in found.items():
        assert gradient is not None, f"{name} has no gradient"
        assert gradient.abs().sum() > 0, f"{name} has a gradient of zero"


def test_the_way_back_leads_to_the_dense_model(case: Case) -> None:
    model = copy.deepcopy(case.graph.model)
    put_back(model, dense_weights(model, Concatenate()))
    assert distance(main_output(call(model, case.zoo.example)).detach(), case.expected) < 3e-6
    assert [name for name, _ in (*model.named_parameters(), *model.named_buffers())] == case.names
    assert repr(model) == case.text


@pytest.mark.parametrize("name", ONE_EACH)
def test_state_dict_goes_round(name: str) -> None:
    other = ZOO[name]()
    zoo, graph = converted(name, top_k=2)
    expected = main_output(zoo.run())
    for site in graph.sites:
        install(other.model, site.rewrite, MoELayer(graph.spliced[site.path]).eval())
    other.model.load_state_dict(graph.model.state_dict())
    assert torch.equal(main_output(other.run()), expected)


@pytest.mark.parametrize("name", ONE_EACH)
def test_a_deep_copy_is_independent(name: str) -> None:
    zoo, _ = converted(name, top_k=2)
    expected = main_output(zoo.run())
    twin = copy.deepcopy(zoo.model)
    with torch.no_grad():
        for layer in moe_layers(zoo.model).values():
            layer.down.zero_()
        found = main_output(call(twin, zoo.example))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ONE_EACH)
def test_bfloat16(name: str) -> None:
    zoo, _ = converted(name)
    expected = main_output(zoo.run())
    zoo.model.to(torch.bfloat16)
    example = zoo.example
    if not isinstance(example, dict):
        example = tuple(x.to(torch.bfloat16) if x.is_floating_point() else x for x in example)
    with torch.no_grad():
        found = main_output(call(zoo.model, example))
    assert found.dtype == torch.bfloat16
    assert distance(found, expected) < 0.06


@pytest.mark.parametrize("name", ONE_EACH)
def test_torch_compile_gives_the_same(name: str) -> None:
    zoo, _ = converted(name, top_k=2)
    expected = main_output(zoo.run())
    compiled = torch.compile(zoo.model, backend="aot_eager")
    with torch.no_grad():
        found = main_output(call(compiled, zoo.example))  # type: ignore[arg-type]  # compile returns a callable
    torch._dynamo.reset()
    assert distance(found, expected) < 1e-5


@pytest.mark.parametrize("name", [name for name in WRITERS if name in WITH_SITES])
def test_greedy_text_stays_the_same(name: str) -> None:
    zoo, _ = opened(name)
    assert isinstance(zoo.example, dict)
    prompt = {k: v for k, v in zoo.example.items() if not k.startswith("decoder")}
    settings = {"max_new_tokens": 8, "do_sample": False}
    expected = zoo.model.generate(**prompt, **settings)  # type: ignore[operator]  # a transformers model
    found = converted(name)[1].model.generate(**prompt, **settings)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "t5"])
def test_gradient_checkpointing_gives_the_same_gradients(name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        zoo, graph = converted(name, top_k=2)
        model = graph.model
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same dropout in both
            torch.autograd.backward(main_output(call(model, zoo.example)).square().sum())
        gradients.append([layer.up.grad for layer in moe_layers(model).values()])
    for plain, again in zip(*gradients, strict=True):
        assert plain is not None
        torch.testing.assert_close(again, plain)


def test_a_place_that_is_not_there_is_an_error() -> None:
    zoo = ZOO["llama"]()
    layer = next(iter(moe_layers(converted("llama")[1].model).values()))
    with pytest.raises(InputError, match=r"no place for the MoE layer at .*layers\.9\.mlp"):
        install(zoo.model, Rewrite("submodule", {"ffn": "model.layers.9.mlp"}), layer)
