"""Where the passes of a layer run, when that is not here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from moeify.ir.feed_forward import FeedForward
from moeify.pipeline.context import PassContext
from moeify.pipeline.contract import Pass
from moeify.pipeline.finished import FinishedLayer


class LayerWorkers(Protocol):
    """Other processes, which hold the same dense model. Layers go there where none waits for another: on a dense prefix, and
    where there are no calibration data."""

    def layers(
        self, passes: Sequence[Pass], sites: Sequence[FeedForward], context: PassContext
    ) -> Iterator[tuple[FinishedLayer, dict[str, float]]]:
        """What the passes leave of each site, in the order of the sites, and the seconds that each pass took, by its name: all
        as `finish_layer` gives it here. Raises MoeifyErrors of the passes; ConversionError where workers keep dying."""
        ...
