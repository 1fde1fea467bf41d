"""Walking a traced model from site to site gives the inputs that eager execution gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from converted import EXPERTS, call, opened
from moeify.frontend.load_model import load_model
from moeify.ir.facts import Fact, NeuronGroups
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.layers.channels import features_last
from moeify.pipeline.context import PassContext
from moeify.pipeline.each_layer import EachLayer
from moeify.pipeline.pipeline import Pipeline
from moeify.splice.eager_host import EagerHost
from moeify_passes.analyse.cluster_neurons import ClusterNeurons
from moeify_passes.analyse.find_feed_forward import FindFeedForward
from moeify_passes.experts.random import Random
from moeify_passes.rewrite.insert_router import InsertRouter
from moeify_passes.rewrite.split_experts import SplitExperts
from zoo import ZOO, Zoo

WALKED = (
    "albert", "bart", "bert", "conv-1d", "conv-2d", "encoder-pre-gelu", "gpt2", "llama", "mixer", "phi3", "squeezebert", "t5",
    "vit",
)  # fmt: skip


class Listen:
    """A pass that keeps the inputs of every site."""

    name = "listen"
    needs: tuple[type[Fact], ...] = ()
    uses: tuple[type[Fact], ...] = ()
    gives: tuple[type[Fact], ...] = ()
    keeps: tuple[type[Fact], ...] = (NeuronGroups,)
    rewrites = False

    def __init__(self) -> None:
        self.heard: dict[str, list[Tensor]] = {}

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        assert context.inputs is not None
        for site in graph.sites:
            self.heard[site.path] = [x.clone() for x in context.inputs(site)]
        return False


def eager_inputs(zoo: Zoo, graph: ModelGraph, batches: list[Any]) -> dict[str, list[Tensor]]:
    """What the modules themselves are given, by pre-hooks on the first matrix of each dense FFN."""
    heard: dict[str, list[Tensor]] = {site.path: [] for site in graph.sites}
    hooks = []
    for site in graph.sites:
        owner = zoo.model.get_submodule(site.up.parameter.rpartition(".")[0])

        def hear(module: nn.Module, args: tuple[Tensor, ...], site: FeedForward = site) -> None:
            x = features_last(args[0]) if site.rewrite.channels else args[0]
            heard[site.path].append(x.detach().reshape(-1, site.hidden).clone())

        hooks.append(owner.register_forward_pre_hook(hear))
    for batch in batches:
        with torch.no_grad():
            call(zoo.model, batch)
    for hook in hooks:
        hook.remove()
    return heard


def larger(value: Any) -> Any:
    """The same batch, twice as large."""
    return torch.cat([value, value.flip(0)]) if isinstance(value, Tensor) else value


def batches_of(zoo: Zoo) -> list[Any]:
    if isinstance(zoo.example, dict):
        return [zoo.example, {k: larger(v) for k, v in zoo.example.items()}]
    return [zoo.example, tuple(larger(v) for v in zoo.example)]


@pytest.mark.parametrize("memory", ["1GiB", 1], ids=["in memory", "spilled"])
@pytest.mark.parametrize("name", WALKED)
def test_dense_prefix(name: str, memory: int | str) -> None:
    listen = Listen()
    zoo, graph = opened(name)
    batches = batches_of(zoo)
    graph.sites = graph.host.find()[0]
    expected = eager_inputs(zoo, graph, batches)
    inner = (listen, ClusterNeurons(experts=EXPERTS, by=Random()), SplitExperts(), InsertRouter(top_k=1))
    Pipeline((FindFeedForward(), EachLayer(inner, prefix="dense", memory=memory))).run(graph, batches)
    for path, inputs in expected.items():
        torch.testing.assert_close(torch.cat(listen.heard[path]), torch.cat(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(WALKED) - {"albert"}))
def test_converted_prefix(name: str) -> None:
    listen = Listen()
    zoo, graph = opened(name)
    batches = batches_of(zoo)
    inner = (listen, ClusterNeurons(experts=EXPERTS, by=Random()), SplitExperts(), InsertRouter(top_k=1))
    Pipeline((FindFeedForward(), EachLayer(inner))).run(graph, batches)
    heard: dict[str, list[Tensor]] = {path: [] for path in listen.heard}
    hooks = []
    for path, layer in graph.host.layers.items():  # type: ignore[attr-defined]  # the eager host

        def hear(module: nn.Module, args: tuple[Tensor, ...], path: str = path) -> None:
            heard[path].append(args[0].reshape(-1, args[0].shape[-1]))

        hooks.append(layer.register_forward_pre_hook(hear))
    for batch in batches:
        with torch.no_grad():
            call(zoo.model, batch)
    for path, inputs in listen.heard.items():
        torch.testing.assert_close(torch.cat(inputs), torch.cat(heard[path]), rtol=1e-4, atol=1e-5)


def test_padding_is_left_out() -> None:
    listen = Listen()
    zoo, graph = opened("bert")
    assert isinstance(zoo.example, dict)
    mask = torch.ones_like(zoo.example["input_ids"])
    mask[0, 3:] = 0
    pipeline = Pipeline((FindFeedForward(), EachLayer((listen,))))
    pipeline.run(graph, [zoo.example | {"attention_mask": mask}])
    assert {len(torch.cat(inputs)) for inputs in listen.heard.values()} == {int(mask.sum())}


@pytest.mark.sampled
@pytest.mark.parametrize("own", [False, True], ids=["encoder's alone", "both streams'"])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_in_an_encoder_decoder_each_stream_has_its_own_padding(name: str, own: bool) -> None:
    """Both streams are equally long here: a mask on the wrong one would not show by its size."""
    listen = Listen()
    zoo = ZOO[name]()
    assert isinstance(zoo.example, dict)
    ids = zoo.example["decoder_input_ids"]
    masks = {"attention_mask": torch.ones_like(ids)}
    masks["attention_mask"][0, 2:] = 0
    if own:
        masks["decoder_attention_mask"] = torch.ones_like(ids)
        masks["decoder_attention_mask"][1, 4:] = 0
    batch = {"input_ids": ids, "decoder_input_ids": ids, **masks}
    graph = ModelGraph(EagerHost(load_model(zoo.model, example=batch)))
    Pipeline((FindFeedForward(), EachLayer((listen,)))).run(graph, [batch])
    found = {path.removeprefix("model.").split(".")[0]: len(torch.cat(inputs)) for path, inputs in listen.heard.items()}
    assert found == {"encoder": ids.numel() - 3, "decoder": ids.numel() - own}
