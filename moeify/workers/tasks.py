"""What runs in a worker. Each task takes plain data and gives plain data, so that it can be done again elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from moeify.export.folder import package_versions
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import Batch, Loss, ModelGraph, OutputGradient
from moeify.pipeline.context import PassContext
from moeify.pipeline.contract import Pass
from moeify.pipeline.each_layer import finish_layer
from moeify.pipeline.finished import FinishedLayer
from moeify.splice.eager_host import UNBOUNDED, EagerHost
from moeify.splice.walk_state import WalkState
from moeify.workers.model_source import ModelSource


def advance(source: ModelSource, shard: Batch | WalkState, path: str) -> tuple[WalkState, list[Tensor], int]:
    """Walks one shard on to a site: where it stands then, the site's inputs ([tokens, hidden] a call), and their number."""
    host = _host(source)
    with host.graph_walk((), "dense", UNBOUNDED) as walk:
        walk.take_up(shard if isinstance(shard, WalkState) else walk.begin(shard))
        inputs = list(walk.inputs(_site(host, path)))
        return walk.put_down(0), inputs, sum(map(len, inputs))


def finish(
    source: ModelSource, passes: Sequence[Pass], context: PassContext, path: str, shards: Sequence[Any], *counts: int
) -> tuple[FinishedLayer, dict[str, float]]:
    """Runs the passes of a layer on the inputs of all shards, in their order; the seconds that each pass took besides.

    shards: references to inputs as `advance` gives them, read one at a time. counts: how many there are, not looked at: while
    one of them is missing, so are inputs, and the task is not begun.
    """
    import ray

    def inputs(_: FeedForward) -> Iterator[Tensor]:
        for shard in shards:
            yield from ray.get(shard)

    host = _host(source)
    site = _site(host, path)
    context.inputs = None if context.batches is None else inputs
    return finish_layer(passes, site, ModelGraph(host, (site,)), context), context.seconds


def gradients(source: ModelSource, row: Batch, loss: Loss) -> dict[str, OutputGradient]:
    """One backward pass of the dense model."""
    return next(_host(source).gradients((row,), loss))


def effects(
    source: ModelSource, paths: Sequence[str], batches: Sequence[Batch], size: float, state: Tensor, only: Sequence[int]
) -> list[float]:
    """The effects of some of the sites. state: of the generator that noise is drawn from."""
    host, generator = _host(source), torch.Generator()
    generator.set_state(state)
    return host.effects_of([_site(host, path) for path in paths], batches, size, generator, only)


def _host(source: ModelSource) -> EagerHost:
    return source.opened(package_versions())


def _site(host: EagerHost, path: str) -> FeedForward:
    return next(site for site in host.found().sites if site.path == path)
