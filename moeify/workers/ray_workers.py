"""The driver's side: cuts the work into tasks of Ray, and puts what they give together in an order of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import Batch, Loss, OutputGradient
from moeify.pipeline.context import PassContext
from moeify.pipeline.contract import Pass
from moeify.pipeline.finished import FinishedLayer
from moeify.splice.gradients import single_rows
from moeify.workers import tasks
from moeify.workers.fetching import RETRIES, fetched
from moeify.workers.model_source import ModelSource
from moeify.workers.shard_walk import ShardWalk


class RayWorkers:
    """`moeify.pipeline.layer_workers.LayerWorkers` and `moeify.splice.dense_model.DenseModel`, in an open session of Ray.

    Nothing hangs on the number of workers: shards are the batches of the calibration data, and what tasks give is taken in the
    order of shards and layers. A task whose worker dies is done again by Ray.
    """

    def __init__(self, source: ModelSource) -> None:
        import ray

        self._source = ray.put(source)
        self._cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        once = ray.remote(num_cpus=1, max_retries=RETRIES)
        self._advance = ray.remote(num_cpus=1, max_retries=RETRIES, num_returns=3)(tasks.advance)
        self._finish, self._gradients, self._effects = once(tasks.finish), once(tasks.gradients), once(tasks.effects)

    def walk(self, batches: Iterable[Batch]) -> ShardWalk:
        """A walk on the dense prefix. Its shards are the batches."""
        return ShardWalk(batches, lambda shard, path: self._advance.remote(self._source, shard, path))

    def layers(
        self, passes: Sequence[Pass], sites: Sequence[FeedForward], context: PassContext
    ) -> Iterator[tuple[FinishedLayer, dict[str, float]]]:
        """As LayerWorkers says. Layers are begun a few ahead of the one that is waited for: the inputs of so many are kept."""
        import ray

        with self.walk(context.batches or ()) as walk:

            def asked(site: FeedForward) -> Any:
                shards, counts = ([], []) if context.batches is None else walk.ask(site)
                return self._finish.remote(self._source, passes_of, ray.put(context.about(site)), site.path, shards, *counts)

            passes_of = ray.put(tuple(passes))
            yield from self._in_order(map(asked, sites))

    def gradients(self, batches: Iterable[Batch], loss: Loss, dynamic: bool) -> Iterator[dict[str, OutputGradient]]:
        """As DenseModel says."""
        rows = (row for batch in batches for row in single_rows(batch, dynamic))
        return self._in_order(self._gradients.remote(self._source, row, loss) for row in rows)

    def effects(
        self, sites: Sequence[FeedForward], batches: Iterable[Batch], size: float, generator: torch.Generator
    ) -> list[float]:
        """As DenseModel says. Each task walks the whole model, and branches at its share of the sites."""
        import ray

        paths, data = [site.path for site in sites], ray.put(list(batches))
        parts = [range(start, len(sites), self._cpus) for start in range(min(self._cpus, len(sites)))]
        state = generator.get_state()
        asked = [self._effects.remote(self._source, paths, data, size, state, list(part)) for part in parts]
        found = [fetched(part) for part in asked]
        return [found[place % len(parts)][place] for place in range(len(sites))]

    def _in_order(self, asked: Iterator[Any]) -> Iterator[Any]:
        """The results of tasks, of which a few more are under way than there are workers; those left over are called off."""
        import ray

        waiting: deque[Any] = deque()
        try:
            for task in asked:
                waiting.append(task)
                if len(waiting) > self._cpus + 1:
                    yield fetched(waiting.popleft())
            while waiting:
                yield fetched(waiting.popleft())
        finally:
            for task in waiting:
                ray.cancel(task)
