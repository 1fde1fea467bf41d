"""Everything before the first pass computes: options checked, the model loaded and traced, sites found, data opened."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeify.api.arguments import Data, Example, Factory, Source, check_files, open_batches
from moeify.api.ending import check_ending, holds_whole
from moeify.api.models import open_model, open_outline
from moeify.api.onnx_source import check_onnx_passes, is_onnx
from moeify.api.outlook import check_outlook, fit
from moeify.api.stock_source import check_not_stock
from moeify.data.held_out_rows import HELD_OUT, without_held_out
from moeify.errors import InputError, UsageError
from moeify.frontend.other_checkpoints import OtherCheckpoints, check_same_shapes
from moeify.ir.model_graph import Batch, ModelGraph
from moeify.layers.budget import moe_layers
from moeify.pipeline.configure import Settings, configure
from moeify.pipeline.each_layer import EachLayer
from moeify.pipeline.layer_sample import calibration_tokens, judging_tokens
from moeify.pipeline.pipeline import Pipeline, check_experts, flatten
from moeify.pipeline.plan import Plan
from moeify.pipeline.recipe import Recipe
from moeify.pipeline.registry import Registry, make_registry
from moeify.splice.eager_host import EagerHost

if TYPE_CHECKING:
    from moeify.training.alignment import Alignment


@dataclass(frozen=True, eq=False)
class Ready:
    """A model with its sites, the pipeline that fits it, and calibration data if there are any."""

    graph: ModelGraph
    host: EagerHost
    pipeline: Pipeline
    data: Iterable[Batch] | None
    notes: tuple[str, ...]
    plan: Plan
    checkpoints: OtherCheckpoints

    def identify_data(self) -> dict[str, Any]:
        """What is equal for the same calibration data; nothing without."""
        from moeify.data.data_set import DataSet

        return self.data.identity() if isinstance(self.data, DataSet) else {}

    def describe_data(self) -> dict[str, Any] | None:
        """What the calibration data say of themselves; None without."""
        from moeify.data.data_set import DataSet

        return self.data.describe() if isinstance(self.data, DataSet) else None


def registry() -> Registry:
    """All passes: those of moeify_passes, EachLayer, and those of installed plug-ins."""
    from moeify_passes import PASSES

    return make_registry(PASSES)


def plan(
    source: Source,
    *,
    recipe: str | Path | Recipe = "emoe",
    experts: int | None = None,
    top_k: int | None = None,
    active: float | None = None,
    layers: str | None = None,
    calibrate: Data | None = None,
    tokens: int | None = None,
    settings: Settings = (),
    factory: Factory | None = None,
    example: Example | None = None,
    seed: int | None = None,
    dtype: str = "fp32",
    device: str = "cpu",
    allow_pickle: bool = False,
    align: Alignment | None = None,
    align_on: Data | None = None,
    export: Sequence[str] = ("torch",),
) -> Plan:
    """What `convert` to a folder with the same options would do, without doing it, and without reading weights where it can.

    Raises what `convert` raises before it computes, but for what is wrong with weights that were not read.
    """
    check_ending(source, "", calibrate, align, align_on, export, dtype=dtype, device=device)
    wanted = configure(
        recipe, experts=experts, top_k=top_k, active=active, layers=layers, tokens=tokens, settings=settings, seed=seed
    )
    return prepare(
        source, wanted, calibrate, tokens, factory=factory, example=example, dtype=dtype, device=device,
        allow_pickle=allow_pickle, to_disk=not holds_whole(export), aligned=align is not None, weights=False,
    ).plan  # fmt: skip


def prepare(
    source: Source, recipe: Recipe, calibrate: Data | None, tokens: int | None, *, factory: Factory | None,
    example: Example | None, dtype: str, device: str, allow_pickle: bool, to_disk: bool, aligned: bool = False,
    weights: bool = True,
) -> Ready:  # fmt: skip
    """Raises UsageError, as early as can be told, where options do not fit together or do not fit a site; InputError for a
    model or data that cannot be read, and for a model without a feed-forward network that can be converted.

    aligned: an alignment follows, and passes do not see the rows that it is judged by. weights: without them as much is read
    as a plan needs. to_disk: as in `fit`."""
    pipeline = _build(recipe, calibrate, tokens)
    check_not_stock(source)
    if is_onnx(source):
        check_onnx_passes(flatten(pipeline.passes), dtype, device)
    check_same_shapes(source, _checkpoints(pipeline))
    if weights:
        check_outlook(
            pipeline, source, factory=factory, example=example, dtype=dtype, device=device, to_disk=to_disk, aligned=aligned
        )
    graph = (open_model if weights else open_outline)(
        source, factory=factory, example=example, dtype=dtype, device=device, allow_pickle=allow_pickle
    )  # fmt: skip
    host = graph.host
    assert isinstance(host, EagerHost)
    steps = flatten(pipeline.passes)
    looked_at = calibration_tokens(steps)
    read = calibrate is not None and (looked_at is not None or not any(getattr(step, "grows", False) for step in steps))
    limit = (looked_at or 0) + judging_tokens(looked_at) if read else 0
    planned = fit(pipeline, graph, limit, device, to_disk=to_disk, aligned=aligned)
    if planned is None:
        raise InputError(_nothing_found(graph))
    others = OtherCheckpoints(host.model)
    for path in _checkpoints(pipeline):
        others.open(path)
    notes, data = (*host.loaded.notes, *host.traced.notes), None
    if read and calibrate is not None:
        more = HELD_OUT if aligned else 0
        data = open_batches(calibrate, host.model, host.loaded.tokenizer, host.example, limit + more)
        if aligned:
            data = without_held_out(data, limit)
        if looked_at is None:
            notes = (*notes, f"no pass of recipe {recipe.name} looks at data: they only judge the layers")
    elif calibrate is not None:
        notes = (*notes, f"no pass of recipe {recipe.name} looks at data: the calibration data were left unread")
    planned = replace(planned, notes=(*notes, *pipeline.left_out(data is not None)))
    return Ready(graph, host, pipeline, data, notes, planned, others)


def _build(recipe: Recipe, calibrate: Data | None, tokens: int | None) -> Pipeline:
    """The pipeline, once everything is checked that can be checked before a model is loaded."""
    pipeline = recipe.build(registry())
    if not any(step.rewrites for step in flatten(pipeline.passes) if not isinstance(step, EachLayer)):
        raise UsageError(f"recipe {recipe.name!r} would change nothing: no pass of it is a rewrite, such as split-experts")
    check_experts(pipeline)
    if tokens is not None and calibrate is None:
        raise UsageError(f"--tokens {tokens} counts calibration data, but there are none: give --calibrate too")
    pipeline.check(with_data=calibrate is not None)
    if calibrate is not None:
        check_files(calibrate)
    return pipeline


def _checkpoints(pipeline: Pipeline) -> tuple[str, ...]:
    """The other checkpoints that passes will read."""
    found = (path for step in flatten(pipeline.passes) for path in getattr(step, "checkpoints", ()))
    return tuple(dict.fromkeys(found))


def _nothing_found(graph: ModelGraph) -> str:
    if moe_layers(graph.model):
        return "the model is converted already: its feed-forward networks are MoE layers; give the dense model"
    if graph.refusals:
        first = graph.refusals[0]
        return (
            f"no feed-forward network can be converted; {len(graph.refusals)} refused, the first {first.path}: {first.reason}"
        )
    return "the model has no feed-forward network that moeify knows: run moeify inspect on it"
