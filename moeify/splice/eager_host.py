"""The eager host: a live nn.Module with its traced graph."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

from moeify.data.heap import close_holes
from moeify.data.mapped_pages import let_go
from moeify.errors import ConversionError
from moeify.frontend.loaded import LoadedModel
from moeify.frontend.match import Found, match
from moeify.frontend.trace import Traced, trace
from moeify.frontend.traced import live_tensor
from moeify.ir.feed_forward import FeedForward, Refusal
from moeify.ir.model_graph import Batch, Loss, OutputGradient, Trial, Walk
from moeify.ir.moe_spec import MoESpec
from moeify.layers.moe_layer import MoELayer
from moeify.splice.dense_model import DenseModel
from moeify.splice.eager import install
from moeify.splice.effects import EffectWalk
from moeify.splice.goal_walk import DenseBeside
from moeify.splice.gradients import output_gradients
from moeify.splice.shelf import shelved
from moeify.splice.trial_walk import TrialWalk
from moeify.splice.walk import GraphWalk

#: Bytes: what is alive at a site stays in memory, for it is a batch or two.
UNBOUNDED = 1 << 62


class EagerHost:
    """Finds sites in the model's traced graph, walks it on calibration data, and splices layers into the module.

    traced: the graph of an equal model, where it is known already; it holds no weights.
    shelf: a folder that finished layers are kept in, mapped into the model from there; None: they are kept in memory. It may be
        removed while the model is in use.
    elsewhere: other processes that hold the same dense model, and are asked for what that says; None: it is computed here.
    """

    def __init__(self, loaded: LoadedModel, traced: Traced | None = None) -> None:
        self.loaded = loaded
        self.model = loaded.model
        self.example = loaded.example
        self.layers: dict[str, MoELayer] = {}
        self.shelf: Path | None = None
        self.elsewhere: DenseModel | None = None
        self._traced = traced
        self._found: Found | None = None

    @property
    def traced(self) -> Traced:
        """The traced graph of the dense model, made at first use."""
        if self._traced is None:
            self._traced = trace(self.model, self.example)
        return self._traced

    def find(self) -> tuple[tuple[FeedForward, ...], tuple[Refusal, ...]]:
        found = self.found()
        return found.sites, found.refusals

    def found(self) -> Found:
        """What the model holds, looked for at first use."""
        if self._found is None:
            self._found = match(self.model, self.traced)
        return self._found

    def walk(self, batches: Iterable[Batch], prefix: str, memory: int) -> AbstractContextManager[Walk]:
        if prefix == "dense" and self.elsewhere is not None:
            return self.elsewhere.walk(batches)
        return self.graph_walk(batches, prefix, memory)

    def graph_walk(self, batches: Iterable[Batch], prefix: str, memory: int) -> GraphWalk:
        """A walk through the model here."""
        layers = self.layers if prefix == "converted" else None
        return GraphWalk(self.model, self.traced, self.found(), batches, layers, memory)

    def goal_walk(self, batches: Iterable[Batch], memory: int) -> DenseBeside:
        batches = tuple(batches) if isinstance(batches, Iterator) else batches
        return DenseBeside(*(self.graph_walk(batches, prefix, memory // 2) for prefix in ("converted", "dense")))

    def gradients(self, batches: Iterable[Batch], loss: Loss) -> Iterator[dict[str, OutputGradient]]:
        if self.layers:
            raise ConversionError("gradients are those of the dense model: ask for them before a layer is converted")
        if self.elsewhere is not None:
            return self.elsewhere.gradients(batches, loss, self.traced.dynamic)
        return output_gradients(self.model, self.traced, self.found(), batches, loss)

    def effects(
        self, sites: Sequence[FeedForward], batches: Iterable[Batch], size: float, generator: torch.Generator
    ) -> list[float]:
        if self.elsewhere is not None:
            return self.elsewhere.effects(sites, batches, size, generator)
        return self.effects_of(sites, batches, size, generator)

    def effects_of(
        self, sites: Sequence[FeedForward], batches: Iterable[Batch], size: float, generator: torch.Generator,
        only: Collection[int] | None = None,
    ) -> list[float]:  # fmt: skip
        """`effects`, computed here; only: see `EffectWalk.effects`."""
        with EffectWalk(self.model, self.traced, self.found(), batches, None, UNBOUNDED) as walk:
            return walk.effects(sites, size, generator, only)

    @contextmanager
    def trials(self, batches: Iterable[Batch]) -> Iterator[Trial]:
        if self.layers:
            raise ConversionError("trials are of the dense model: ask for them before a layer is converted")
        with TrialWalk(self.model, self.traced, self.found(), batches, None, UNBOUNDED) as walk:
            yield walk.start

    def splice(self, site: FeedForward, spec: MoESpec) -> None:
        device = next(self.model.parameters()).device
        layer = MoELayer.from_spec(site, spec).eval().to(device)
        if self.shelf is not None:
            layer = shelved(layer, site.path, self.shelf)
        self.let_go(site)
        install(self.model, site.rewrite, layer, site.path, site.places)
        self.layers[site.path] = layer
        close_holes()

    def let_go(self, site: FeedForward) -> None:
        let_go(live_tensor(self.model, place.parameter) for place in site.places.values())
