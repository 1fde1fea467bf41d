from __future__ import annotations

import pytest

from moeify.errors import UsageError
from moeify.ir.facts import FeedForwards
from moeify.ir.feed_forward import Refusal
from moeify.ir.model_graph import ModelGraph
from moeify.ir.text import graph_text
from moeify.pipeline.context import PassContext
from moeify_passes.analyse.find_feed_forward import FindFeedForward
from passes.rewriting import compare_golden
from passes.tiny import TinyHost, random_site

SITES = tuple(random_site(f"layers.{i}.mlp", gated=i % 2 == 1, biases=i == 2) for i in range(7))
HOST = TinyHost(SITES, (Refusal("head", "its two matrices do not meet"),))


def found(layers: str) -> list[int]:
    graph = ModelGraph(HOST)
    assert not FindFeedForward(layers).run(graph, PassContext())
    return [SITES.index(site) for site in graph.sites]


@pytest.mark.parametrize(
    ("layers", "picked"),
    [
        ("*", [0, 1, 2, 3, 4, 5, 6]),
        ("layers.[13].mlp", [1, 3]),
        ("last-half", [3, 4, 5, 6]),
        ("every:1", [0, 1, 2, 3, 4, 5, 6]),
        ("every:2", [1, 3, 5]),
        ("every:4", [3]),
        ("layers.0.*, every:3", [0, 2, 5]),
        ("last-half,every:2", [1, 3, 4, 5, 6]),
    ],
)
def test_picks_layers(layers: str, picked: list[int]) -> None:
    assert found(layers) == picked


def test_text_of_what_was_found(request: pytest.FixtureRequest) -> None:
    graph, context = ModelGraph(HOST), PassContext()
    FindFeedForward("layers.[12].mlp").run(graph, context)
    compare_golden(graph_text(graph), "find_feed_forward", request)
    fact = context.get(None, FeedForwards)
    assert (fact.found, fact.refused) == (7, 1)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("block.*", "layers 'block.*' picks none of the 7 feed-forward networks: their paths are layers.0.mlp, layers.1.mlp"),
        ("every:8", "layers 'every:8' picks none of the 7"),
        ("every:0", "find-feed-forward.layers has 'every:0': give a whole number from 1"),
        ("every:two", "find-feed-forward.layers has 'every:two': give a whole number from 1"),
        ("", "find-feed-forward.layers is '': give path patterns, last-half or every:N"),
        ("*,", r"find-feed-forward.layers is '*,': give path patterns"),
    ],
)
def test_refuses(layers: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        found(layers)
    assert message in str(error.value)
