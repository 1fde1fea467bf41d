"""Small converted models for tests: any model of the zoo, split at random, all experts on unless told otherwise."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from moeify.frontend.load_model import load_model
from moeify.ir.model_graph import ModelGraph
from moeify.pipeline.each_layer import EachLayer
from moeify.pipeline.pipeline import Pipeline
from moeify.splice.eager_host import EagerHost
from moeify_passes.analyse.cluster_neurons import ClusterNeurons
from moeify_passes.analyse.find_feed_forward import FindFeedForward
from moeify_passes.check.match_dense import MatchDense
from moeify_passes.experts.random import Random
from moeify_passes.rewrite.insert_router import InsertRouter
from moeify_passes.rewrite.split_experts import SplitExperts
from traced_zoo import traced_zoo
from zoo import ZOO, Zoo

#: Experts of each converted FFN; divides the neurons of every model of the zoo.
EXPERTS = 3


def opened(name: str) -> tuple[Zoo, ModelGraph]:
    """A new model of the zoo, and as a graph; its trace is made once a process, as tracing takes seconds."""
    zoo = ZOO[name]()
    return zoo, ModelGraph(EagerHost(load_model(zoo.model, example=zoo.example), traced_zoo(name)[1]))


def converted(name: str, top_k: int = EXPERTS) -> tuple[Zoo, ModelGraph]:
    """A new model of the zoo, rewritten in place: random experts, average-key router."""
    zoo, graph = opened(name)
    inner = (ClusterNeurons(experts=EXPERTS, by=Random()), SplitExperts(), MatchDense(), InsertRouter(top_k=top_k))
    Pipeline((FindFeedForward(), EachLayer(inner))).run(graph)
    return zoo, graph


def main_output(output: Any) -> Tensor:
    """The tensor that a model's output is judged by."""
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "last_hidden_state"):
        if isinstance(value := getattr(output, name, None), Tensor):
            return value
    value = output[0]
    assert isinstance(value, Tensor)
    return value


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference / largest value of b."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def call(model: nn.Module, batch: tuple[Any, ...] | dict[str, Any]) -> Any:
    return model(**batch) if isinstance(batch, dict) else model(*batch)
