"""each-layer gives its layers away where they do not hang on each other, and what comes back is as if they had stayed."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

from cli.tiny_models import batches, deep_stack, example
from moeify.frontend.load_model import load_model
from moeify.ir.facts import Budget
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.pipeline.context import PassContext
from moeify.pipeline.each_layer import EachLayer
from moeify.pipeline.finished import FinishedLayer
from moeify.pipeline.pipeline import Pipeline
from moeify.pipeline.report import Report
from moeify.splice.eager_host import EagerHost
from moeify_passes import (
    ActivationMarkers,
    AllocateBudget,
    Calibrate,
    ClusterNeurons,
    FindFeedForward,
    GainRegression,
    InsertRouter,
    RefitOutputs,
    SplitExperts,
)  # fmt: skip
from workers.in_process import InProcess

WITH_DATA = (
    Calibrate(tokens=100), ClusterNeurons(experts=4, by=ActivationMarkers()), SplitExperts(),
    InsertRouter(active=0.5, by=GainRegression()), RefitOutputs(),
)  # fmt: skip
BARE = (Calibrate(), ClusterNeurons(experts=4), SplitExperts(), InsertRouter(top_k=2))


def new_graph() -> ModelGraph:
    return ModelGraph(EagerHost(load_model(deep_stack(), example=example())))


def run(
    inner: tuple[Any, ...], prefix: Literal["converted", "dense"], data: Any, workers: Any, finished: Any = None
) -> tuple[ModelGraph, Report]:
    graph = new_graph()
    before = (AllocateBudget(tokens=64),) if data else ()
    steps = (FindFeedForward(), *before, EachLayer(inner, prefix=prefix))
    return graph, Pipeline(steps).run(graph, data, seed=3, workers=workers, finished=finished)


def new_workers(data: Any) -> InProcess:
    host = EagerHost(load_model(deep_stack(), example=example()))
    return InProcess(host, data)


def same(one: tuple[ModelGraph, Report], other: tuple[ModelGraph, Report]) -> None:
    values, others = (graph.model.state_dict() for graph, _ in (one, other))
    assert list(values) == list(others)
    assert all(torch.equal(values[name], others[name]) for name in values)
    assert one[1].to_json() == other[1].to_json()
    assert one[1].seconds.keys() == other[1].seconds.keys()


@pytest.mark.parametrize(("inner", "data"), [(WITH_DATA, True), (BARE, False)], ids=["dense prefix", "no data"])
def test_layers_come_back_as_if_they_had_stayed(inner: tuple[Any, ...], data: bool) -> None:
    given, prefix = (list(batches()), "dense") if data else (None, "converted")
    workers = new_workers(given)
    same(run(inner, prefix, given, workers), run(inner, prefix, given, None))  # type: ignore[arg-type]  # one of the two words
    assert len(workers.asked) == 5


def test_layers_that_wait_for_each_other_stay() -> None:
    given = list(batches())
    workers = new_workers(given)
    run(WITH_DATA, "converted", given, workers)
    assert workers.asked == []


class Kept:
    """Layers that a run has finished, in memory."""

    def __init__(self) -> None:
        self.layers: dict[str, FinishedLayer] = {}
        self.found: list[str] = []

    def find(self, site: FeedForward) -> FinishedLayer | None:
        self.found += [site.path] if site.path in self.layers else []
        return self.layers.get(site.path)

    def keep(self, site: FeedForward, layer: FinishedLayer) -> None:
        self.layers[site.path] = layer


def test_what_was_finished_before_is_not_asked_for_again() -> None:
    given, kept = list(batches()), Kept()
    whole = run(WITH_DATA, "dense", given, new_workers(given), kept)
    del kept.layers["1"], kept.layers["3"]
    workers = new_workers(given)
    same(run(WITH_DATA, "dense", given, workers, kept), whole)
    assert workers.asked == ["1", "3"]
    assert set(kept.layers) == {"0", "1", "2", "3", "4"}


def test_a_layer_takes_along_what_is_known_of_it_alone() -> None:
    graph = new_graph()
    first, second = graph.host.find()[0][:2]
    context = PassContext(batches=[(1,)], seed=5, looked_at=7)
    context.put(first, Budget(0.25))
    context.put(second, Budget(0.75))
    context.measure(first, figure=1)
    about = context.about(first)
    assert about.get(first, Budget).active == 0.25
    assert about.find(second, Budget) is None
    assert (about.seed, about.looked_at, about.measurements) == (5, 7, {first.path: {"figure": 1}})
    assert not list(about.batches or ()), "the batches stay where they are"
    assert about.batches is not None
    about.measure(first, figure=2)
    assert context.measurements == {first.path: {"figure": 1}}
