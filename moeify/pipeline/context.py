"""What passes share: facts by site and type, calibration inputs, seeded generators, measurements, progress."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from moeify.errors import ConversionError
from moeify.ir.facts import Fact
from moeify.ir.feed_forward import FeedForward, ReadTensor
from moeify.ir.model_graph import Batch
from moeify.pipeline.finished import FinishedLayers

if TYPE_CHECKING:
    from moeify.pipeline.layer_workers import LayerWorkers

F = TypeVar("F", bound=Fact)

#: Receives (task, done, total or None): a progress bar, or nothing.
Progress = Callable[[str, int, int | None], None]


def no_progress(task: str, done: int, total: int | None) -> None:
    """Shows nothing."""


@dataclass
class PassContext:
    """Facts and services of one run of a pipeline.

    batches: re-iterable calibration data, or None. seed: from which every generator is derived.
    wanted: the facts that later passes of the pipeline need or use.
    looked_at: how many of the leading calibration tokens passes look at; None: none of them.
    inputs: gives the FFN inputs of a site, [tokens, hidden] a batch (set by the pass that walks the host). goals: what the FFN
        would have to say to them (`moeify.ir.model_graph.GoalWalk`), where a pass of the walk uses that; it may give None.
    measurements: what passes report, by site path, in order. seconds: time spent, by pass name.
    checkpoint: opens another checkpoint of the same model by its path, once however often it is asked for (set by the api).
    finished: where each-layer keeps what it has done, and finds what a run that was ended early had done; or None.
    workers: other processes that each-layer may give its layers to, or None.
    """

    batches: Iterable[Batch] | None = None
    seed: int = 0
    progress: Progress = no_progress
    wanted: frozenset[type[Fact]] = frozenset()
    looked_at: int | None = None
    inputs: Callable[[FeedForward], Iterator[Tensor]] | None = None
    goals: Callable[[FeedForward], Iterator[Tensor] | None] | None = None
    measurements: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    finished: FinishedLayers | None = None
    checkpoint: Callable[[str], ReadTensor] | None = None
    workers: LayerWorkers | None = None
    _facts: dict[tuple[str, type[object]], object] = field(default_factory=dict)

    def put(self, site: FeedForward | None, fact: Fact) -> None:
        """Keeps a fact about a site (None: about the whole model), replacing one of its type."""
        self._facts[_key(site), type(fact)] = fact

    def find(self, site: FeedForward | None, kind: type[F]) -> F | None:
        fact = self._facts.get((_key(site), kind))
        return fact if isinstance(fact, kind) else None

    def get(self, site: FeedForward | None, kind: type[F]) -> F:
        """The fact of that type. Raises ConversionError when no pass has given it."""
        fact = self.find(site, kind)
        if fact is None:
            raise ConversionError(f"{_key(site) or 'the model'}: no pass has given {kind.__name__}")
        return fact

    def drop(self, site: FeedForward, keep: tuple[type[Fact], ...] = ()) -> None:
        """Forgets the facts of a site, but those of the types to keep."""
        for key in [k for k in self._facts if k[0] == site.path and k[1] not in keep]:
            del self._facts[key]

    def about(self, site: FeedForward) -> PassContext:
        """A context of its own for the passes of one site, to be run elsewhere: plain data, what is known of the site and of
        the whole model, without batches and services. `batches` still tells whether there are any."""
        return PassContext(
            batches=None if self.batches is None else (), seed=self.seed, wanted=self.wanted, looked_at=self.looked_at,
            measurements={site.path: dict(self.measurements.get(site.path, {}))},
            _facts={key: fact for key, fact in self._facts.items() if key[0] in ("", site.path)},
        )  # fmt: skip

    def measure(self, site: FeedForward, **values: Any) -> None:
        """Adds figures about a site to the report."""
        self.measurements.setdefault(site.path, {}).update(values)

    def generator(self, purpose: str, site: FeedForward | None = None) -> torch.Generator:
        """A generator that depends on the seed, the purpose and the site alone, not on what ran before."""
        digest = hashlib.sha256(f"{self.seed}/{purpose}/{_key(site)}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _key(site: FeedForward | None) -> str:
    return "" if site is None else site.path
