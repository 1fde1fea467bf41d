"""What a strategy is, for those of other packages: a frozen dataclass that keeps one of these contracts."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from moeify.ir.facts import Fact
from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.ir.moe_spec import MoESpec, Router
from moeify.pipeline.context import PassContext


class Strategy(Protocol):
    """kind: the name in recipes. needs, uses: facts that must be there, or are taken where they are, as of a pass."""

    @property
    def kind(self) -> str: ...
    @property
    def needs(self) -> tuple[type[Fact], ...]: ...
    @property
    def uses(self) -> tuple[type[Fact], ...]: ...


@runtime_checkable
class ExpertStrategy(Strategy, Protocol):
    """Decides which neurons make an expert: `by` of cluster-neurons."""

    def group(self, site: FeedForward, neurons: Tensor, sizes: tuple[int, ...], context: PassContext) -> tuple[Tensor, ...]:
        """Groups of `neurons` (int64 indices, those of the routed experts) of those sizes, each neuron in one of them."""
        ...


@runtime_checkable
class Shares(Protocol):
    """An expert strategy that knows which neurons the shared expert should take; of others, activation-markers decides."""

    def share(self, site: FeedForward, size: int, context: PassContext) -> Tensor:
        """`size` neurons (int64 indices, ascending), chosen before the others are grouped."""
        ...


@runtime_checkable
class RouterStrategy(Strategy, Protocol):
    """Decides where scores come from: `by` of insert-router."""

    def shape(self, config: MoEConfig) -> RouterConfig:
        """The router's shape in front of a layer of that shape."""
        ...

    def route(self, site: FeedForward, spec: MoESpec, context: PassContext) -> Router:
        """The router for the spec's experts, of the shape that `shape` says."""
        ...
