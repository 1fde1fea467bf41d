"""What a layer would have to say: on a dense prefix what it says, behind converted layers what makes up for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from converted import opened
from moeify.ir.facts import Fact, OutputGoals
from moeify.ir.model_graph import ModelGraph
from moeify.pipeline.context import PassContext
from moeify.pipeline.each_layer import EachLayer
from moeify.pipeline.pipeline import Pipeline
from moeify.splice.eager_host import UNBOUNDED, EagerHost
from moeify_passes.analyse.cluster_neurons import ClusterNeurons
from moeify_passes.analyse.find_feed_forward import FindFeedForward
from moeify_passes.experts.random import Random
from moeify_passes.rewrite.insert_router import InsertRouter
from moeify_passes.rewrite.split_experts import SplitExperts
from zoo import ZOO

#: Models whose FFNs write into a sum, and how many terms it has beside theirs.
SUMS = {
    "llama": 1, "qwen2": 1, "gpt2": 1, "opt": 1, "gpt-neox": 2, "gpt-j": 2, "phi": 2, "bert": 1, "encoder-pre-gelu": 1,
    "encoder-post-relu": 1, "t5": 1, "bart": 1, "vit": 1, "decoder": 1,
}  # fmt: skip
#: Behind these outputs comes something else first: a norm, a factor; or the FFN runs several times, or over channels.
WITHOUT = ("gemma2", "granite", "albert", "conv-2d", "plain-mlp")


def sums(name: str) -> list[int]:
    """For every site how many terms its sum has beside its own, 0 without one."""
    _, graph = opened(name)
    sites, _ = graph.host.find()
    assert isinstance(graph.host, EagerHost)
    with graph.host.graph_walk((), "dense", UNBOUNDED) as walk:
        return [0 if (found := walk.output_sum(site)) is None else len(found.others) for site in sites]


@pytest.mark.parametrize("name", SUMS)
def test_the_sum_that_the_output_goes_into_is_found(name: str) -> None:
    assert set(sums(name)) == {SUMS[name]}


@pytest.mark.parametrize("name", WITHOUT)
def test_where_there_is_none_none_is_found(name: str) -> None:
    assert set(sums(name)) == {0}


@pytest.mark.parametrize("name", SUMS)
def test_on_a_dense_prefix_the_goal_is_what_the_dense_layer_says(name: str) -> None:
    zoo, graph = opened(name)
    sites, _ = graph.host.find()
    with graph.host.goal_walk([zoo.example], UNBOUNDED) as walk:
        for site in sites:
            goals = walk.goals(site)
            assert goals is not None
            for x, goal in zip(walk.inputs(site), goals, strict=True):
                wanted = site.forward(x)
                torch.testing.assert_close(goal, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
            walk.leave(site)


class Heard:
    """A pass that keeps inputs and goals of every site."""

    name, rewrites = "heard", False
    needs: tuple[type[Fact], ...] = ()
    gives: tuple[type[Fact], ...] = ()
    keeps: tuple[type[Fact], ...] = ()

    def __init__(self, *uses: type[Fact]) -> None:
        self.uses = uses
        self.goals: dict[str, Tensor | None] = {}

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        for site in graph.sites:
            goals = None if context.goals is None else context.goals(site)
            self.goals[site.path] = None if goals is None else torch.cat(list(goals))
        return False


def heard(*uses: type[Fact], prefix: str = "converted") -> tuple[Heard, ModelGraph]:
    """Layers of llama converted by halves on its example, each asked what it would have to say."""
    zoo, graph = opened("llama")
    listen = Heard(*uses)
    inner = (listen, ClusterNeurons(experts=2, by=Random()), SplitExperts(), InsertRouter(top_k=1))
    loop = EachLayer(inner, prefix=prefix)  # type: ignore[arg-type]  # a Literal
    Pipeline((FindFeedForward(), loop)).run(graph, [zoo.example])
    return listen, graph


def test_behind_converted_layers_the_goal_makes_up_for_them() -> None:
    """A last FFN that said it would bring the residual stream to where the dense model has it."""
    listen, graph = heard(OutputGoals)
    dense, example = ZOO["llama"]().model, ZOO["llama"]().example
    assert isinstance(example, dict)
    last = len(graph.model.model.layers) - 1
    goal = listen.goals[f"model.layers.{last}.mlp"]
    assert goal is not None
    wanted, streams = list[Tensor](), list[Tensor]()
    dense.get_submodule(f"model.layers.{last}").register_forward_hook(lambda module, x, y: wanted.append(y))
    norm = graph.model.get_submodule(f"model.layers.{last}.post_attention_layernorm")
    norm.register_forward_pre_hook(lambda module, x: streams.append(x[0]))
    with torch.no_grad():
        dense(**example)
        graph.model(**example)
        said = graph.model.get_submodule(f"model.layers.{last}.mlp")(norm(streams[0]))
    there = (streams[0] + goal.view_as(streams[0])).flatten()
    torch.testing.assert_close(there, wanted[0].flatten(), rtol=1e-4, atol=1e-5)
    assert float((goal - said.flatten(0, 1)).norm()) > 0.1 * float(goal.norm())


def test_the_dense_model_goes_along_only_where_a_pass_asks() -> None:
    assert set(heard()[0].goals.values()) == {None}
    assert set(heard(OutputGoals, prefix="dense")[0].goals.values()) == {None}
