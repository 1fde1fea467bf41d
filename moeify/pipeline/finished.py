"""Layers that a run has finished, kept so that a run which is ended early can go on where it stopped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_spec import MoESpec


@dataclass(frozen=True, eq=False)
class FinishedLayer:
    """All that the passes left of one site: its spec (None: it stays dense), what they measured of it, and their notes."""

    spec: MoESpec | None
    measured: dict[str, Any]
    notes: tuple[str, ...] = ()


class FinishedLayers(Protocol):
    """Where finished layers are kept. Only a run of the same passes on the same model and data may read them."""

    def find(self, site: FeedForward) -> FinishedLayer | None:
        """What an earlier run finished of the site; None where it did not come so far."""
        ...

    def keep(self, site: FeedForward, layer: FinishedLayer) -> None:
        """Keeps the layer, whole or not at all."""
        ...
