"""One journey through the dense model, shard by shard in other processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import Batch
from moeify.workers.fetching import fetched

#: Refers to a value that a task gives or will give, wherever that lies.
Reference = Any


class ShardWalk:
    """`moeify.ir.model_graph.Walk` on the dense prefix; a batch is a shard.

    A step takes a shard from where it stands to a site, and knows of no step but the one before: any worker can do it, and do
    it again. advance: starts a step; see `moeify.workers.tasks.advance`.
    """

    def __init__(
        self, batches: Iterable[Batch], advance: Callable[[Reference, str], tuple[Reference, Reference, Reference]]
    ) -> None:
        self._batches = batches
        self._advance = advance
        self._shards: list[Reference] = []
        self._site: str | None = None
        self._inputs: list[Reference] = []
        self._counts: list[Reference] = []

    def __enter__(self) -> Self:
        import ray

        self._shards = [ray.put(batch) for batch in self._batches]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Lets go of what the workers keep for it."""
        self._shards, self._inputs, self._counts = [], [], []

    def ask(self, site: FeedForward) -> tuple[list[Reference], list[Reference]]:
        """Has all shards walked on to the site, without waiting: its inputs and their numbers, shard by shard."""
        if self._site != site.path:
            steps = [self._advance(shard, site.path) for shard in self._shards]
            self._shards, self._inputs, self._counts = [list(parts) for parts in zip(*steps)] if steps else [[], [], []]
            self._site = site.path
        return self._inputs, self._counts

    def inputs(self, site: FeedForward) -> Iterator[Tensor]:
        """As `GraphWalk.inputs`: the same values in the same order."""
        for shard in self.ask(site)[0]:
            yield from fetched(shard)

    def leave(self, site: FeedForward) -> None:
        """The workers' weights stay where they are."""
