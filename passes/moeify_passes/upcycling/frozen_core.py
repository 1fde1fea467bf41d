"""The rows of an upcycled layer whose experts stand on one frozen core (docs/moe-layer.md, 'Composed rows')."""

from __future__ import annotations

from moeify.errors import UsageError
from moeify.ir.composed_spec import ComposedSpec
from moeify.ir.copies import copy_factors
from moeify.ir.feed_forward import FeedForward
from moeify.pipeline.context import PassContext
from moeify_passes.upcycling.dense_weights import dense_weights
from moeify_passes.upcycling.lora import Lora
from moeify_passes.upcycling.residual import Residual
from moeify_passes.upcycling.shards import scaled

#: Strategies that leave the FFN as it is, once, and say what is trained beside it.
Composing = Residual | Lora


def composed_rows(by: Composing, site: FeedForward, copies: int, shared: bool, context: PassContext) -> ComposedSpec:
    """What the layer's rows come of. Beside a shared expert the core counts half, and with it all that stand on it."""
    dense = dense_weights(site)
    core = scaled(dense, copy_factors(1, shared)[1])
    changed = {name: weight for name, weight in core.items() if weight is not dense[name]}
    return ComposedSpec(by.rule, changed, by.own(site, copies + shared, context))


def check_composing(by: Composing, shards: int) -> None:
    """Raises UsageError for experts that are cut."""
    if shards > 1:
        raise UsageError(
            f"upcycle-experts.shards is {shards} and by is {by.kind}: an expert on a frozen core is the whole core and what is "
            "trained beside it, and cannot be cut: leave shards at 1"
        )
