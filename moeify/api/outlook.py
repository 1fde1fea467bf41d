"""What can be told of a conversion before a weight is read: whether its options fit the model, and the model the machine."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from torch import nn

from moeify.api.arguments import Example, Factory, Source, dtype_of
from moeify.ir.facts import FeedForwards, NeuronImportance
from moeify.ir.model_graph import ModelGraph
from moeify.pipeline.memory import check_memory
from moeify.pipeline.pipeline import Pipeline, flatten
from moeify.pipeline.plan import Plan, foresee, make_plan
from moeify.splice.eager_host import EagerHost


def check_outlook(
    pipeline: Pipeline, source: Source, *, factory: Factory | None, example: Example | None, dtype: str, device: str,
    to_disk: bool, aligned: bool = False,
) -> None:  # fmt: skip
    """Raises UsageError where a pass does not fit a site, or the converted weights do not fit into the memory.

    For recipes whose models grow alone, as to look ahead is to trace the model once more. What tells its shape with its weights
    only (a pickle of classes of its own, a module in memory) is judged once it is loaded.
    """
    if isinstance(source, nn.Module) or not any(getattr(step, "grows", False) for step in flatten(pipeline.passes)):
        return
    graph = _outline(source, factory, example, dtype)
    if graph is not None:
        fit(pipeline, graph, 0, device, to_disk=to_disk, aligned=aligned)


def fit(
    pipeline: Pipeline, graph: ModelGraph, tokens: int, device: str, *, to_disk: bool, aligned: bool = False
) -> Plan | None:
    """Finds the sites that the pipeline works on and plans what becomes of them; None where there are none.

    tokens: of calibration data. to_disk: the converted model is written to a folder and to nothing else, so that what lies in
    files need not be in memory. aligned: an alignment follows, which takes the whole model. Raises UsageError where options do
    not fit a site, or weights do not fit into the memory.
    """
    Pipeline(tuple(step for step in pipeline.passes if FeedForwards in step.gives)).run(graph)
    if not graph.sites:
        return None
    for site in graph.sites:
        foresee(pipeline.passes, site)
    parameters = list(graph.model.parameters())
    layerwise = to_disk and not aligned and not any(NeuronImportance in step.gives for step in flatten(pipeline.passes))
    streamed = layerwise and device.startswith("cpu") and isinstance(graph.host, EagerHost) and graph.host.loaded.mapped
    count, size = sum(p.numel() for p in parameters), parameters[0].element_size()
    plan = make_plan(pipeline.passes, graph, count, size, tokens, streamed=streamed, aligned=aligned)
    if streamed:
        check_memory(size * max((layer.parameters_after for layer in plan.layers), default=0), device, " a layer")
    else:
        check_memory(plan.weights, device)
    return plan


def _outline(source: str | Path, factory: Factory | None, example: Example | None, dtype: str) -> ModelGraph | None:
    """The model with its sites found and without values; None where that cannot be had."""
    from moeify.frontend.load_outline import load_outline
    from moeify.frontend.trace import trace_outline

    kind = dtype_of(dtype)
    with suppress(Exception):  # models fail without values in ways of their own; what is wrong itself is said when it is loaded
        loaded = load_outline(source, example, kind, factory)
        if loaded is not None:
            host = EagerHost(loaded, trace_outline(loaded.model, loaded.example))
            host.find()
            return ModelGraph(host)
    return None
