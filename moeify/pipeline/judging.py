"""Every layer that is built on calibration data is judged: how far it is from the dense FFN, and what less would have done."""

from __future__ import annotations

import time

from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_spec import MoESpec
from moeify.measure.layer_errors import layer_errors
from moeify.pipeline.context import PassContext
from moeify.pipeline.layer_sample import layer_sample

#: The name under which the figures stand among what was measured of a layer, and the time among the passes.
NULLS, SECONDS = "nulls", "layer-nulls"


def judge(site: FeedForward, spec: MoESpec | None, context: PassContext) -> None:
    """Reports the errors of a finished layer and of its nulls, where there are data and experts that are parts of the FFN."""
    if spec is None or context.inputs is None or spec.shards is not None or spec.composed is not None:
        return
    if spec.router is not None and spec.router.config.kind == "stochastic":
        return
    started = time.perf_counter()
    sample = layer_sample(context.inputs(site), context.looked_at)
    if sample is not None:
        context.measure(site, **{NULLS: layer_errors(site, spec, sample, context.seed).to_json()})
    context.seconds[SECONDS] = context.seconds.get(SECONDS, 0.0) + time.perf_counter() - started
