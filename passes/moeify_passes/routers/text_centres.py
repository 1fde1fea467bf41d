"""The router that knows each expert's text (LLaMA-MoE v2: the gate starts from the centres of the text groups)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moeify.errors import UsageError
from moeify.ir.facts import Fact, NeuronImportance
from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.ir.moe_spec import MoESpec, Router
from moeify.pipeline.context import PassContext


@dataclass(frozen=True)
class TextCentres:
    """Scores expert e by x . (the mean FFN input of text group e): a linear router without a bias, to be trained further.

    Goes with experts by gradient-importance, whose expert e belongs to group e.
    """

    kind: ClassVar[str] = "text-centres"
    needs: ClassVar[tuple[type[Fact], ...]] = (NeuronImportance,)
    uses: ClassVar[tuple[type[Fact], ...]] = ()

    def shape(self, config: MoEConfig) -> RouterConfig:
        """The router's shape in front of a layer of that shape."""
        return RouterConfig("linear")

    def route(self, site: FeedForward, spec: MoESpec, context: PassContext) -> Router:
        """The router for the spec's experts: weight [experts, hidden]. Raises UsageError for another number of text groups."""
        centres = context.get(site, NeuronImportance).centres
        if len(centres) != len(spec.experts):
            raise UsageError(
                f"text-centres has a score for each text group: {site.path} has {len(spec.experts)} experts but "
                f"measure-importance.groups is {len(centres)}: set both to the same number"
            )
        return Router(self.shape(spec.config(site)), {"weight": centres})
