"""What a pipeline would do, from shapes alone: nothing is computed or rewritten."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_config import MoEConfig
from moeify.pipeline.contract import Pass
from moeify.pipeline.each_layer import EachLayer
from moeify.pipeline.pipeline import flatten
from moeify.pipeline.size import parse_size

#: Bytes for each element of a layer's linear term while it is fitted (moeify.measure.linear_term): four float32 matrices.
_JUDGING = 16
#: Hidden vectors that a decoder keeps alive a token between two layers (residual, FFN input, positions, the sample's copy).
_ALIVE = 8


#: Bytes of an alignment for a trained number: gradient, two states, the best so far; in half precision a float32 weight too.
_ALIGNED = (16, 20)


@runtime_checkable
class Fits(Protocol):
    """A pass that takes memory for sums over pairs of a layer's neurons."""

    def fit_memory(self, config: MoEConfig) -> int:
        """Bytes, for a layer of that shape."""
        ...


@runtime_checkable
class Foresees(Protocol):
    """A pass that can tell the shape it will leave a site with, without its weights or data."""

    def foresee(self, site: FeedForward, config: MoEConfig | None) -> MoEConfig | None:
        """The layer's shape after this pass; `config` is the shape before it, None while the FFN is dense.

        Raises UsageError where the pass's options do not fit the site.
        """
        ...


@dataclass(frozen=True)
class PlannedLayer:
    """One FFN and what it would become; parameters count matrices, rows the neurons that all experts have together."""

    path: str
    kind: str
    activation: str
    hidden: int
    neurons: int
    rows: int
    experts: int
    top_k: int | None
    rewrite: str
    parameters_before: int
    parameters_after: int
    active_fraction: float


@dataclass(frozen=True)
class Plan:
    """What a conversion would do. Parameters are those of the whole model, active_parameters those that one token uses,
    trained_parameters those that are in no frozen core.

    In bytes: weights is what the converted parameters take; peak_memory an estimate of what the conversion takes above the
    process after imports; optimizer_memory what training all of trained_parameters with AdamW takes on top of the weights (two
    float32 states and a gradient each).
    """

    layers: tuple[PlannedLayer, ...]
    parameters_before: int
    parameters_after: int
    active_parameters: int
    trained_parameters: int
    active_fraction: float
    weights: int
    peak_memory: int
    optimizer_memory: int
    refusals: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    @property
    def grows(self) -> bool:
        """Do experts hold more neurons than the FFNs they come of?"""
        return any(layer.rows > layer.neurons for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def foresee(passes: Iterable[Pass], site: FeedForward) -> MoEConfig | None:
    """The shape that the passes give the site; None when they leave it dense. Raises UsageError where they do not fit it."""
    config: MoEConfig | None = None
    for step in flatten(passes):
        if isinstance(step, Foresees):
            config = step.foresee(site, config)
    return config


def make_plan(
    passes: Sequence[Pass],
    graph: ModelGraph,
    model_parameters: int,
    item_size: int,
    tokens: int,
    *,
    streamed: bool = False,
    aligned: bool = False,
) -> Plan:
    """The plan for the selected sites.

    model_parameters: of the dense model; item_size: bytes of one; tokens: of calibration data. streamed: weights stay in files.
    aligned: the experts are trained at the end.
    """
    shapes = [(site, config) for site in graph.sites if (config := foresee(passes, site)) is not None]
    layers = [_planned(site, config) for site, config in shapes]
    before = sum(layer.parameters_before for layer in layers)
    added = sum(c.parameters + c.vectors - s.parameters - s.vectors for s, c in shapes)
    active = sum(layer.active_fraction * layer.parameters_before for layer in layers)
    # One layer (dense, its rows in new order, a float32 copy to check) and the calibration; then the dense weights and the
    # converted ones, unless they lie in files.
    largest = max((max(site.parameters, config.parameters) for site, config in shapes), default=0)
    alive = tokens * _ALIVE * max((site.hidden for site in graph.sites), default=0) * item_size
    bounds = [parse_size(step.memory, "each-layer.memory") for step in flatten(passes) if isinstance(step, EachLayer)]
    alive = min([alive, *bounds])
    after = model_parameters + added
    kept = 0 if streamed else (model_parameters + after) * item_size
    if aligned:
        kept += sum(config.parameters for _, config in shapes) * _ALIGNED[item_size < 4]
    # With data a layer is judged beside a linear term: its matrix, what is solved for it, and a factor.
    judging = max((_JUDGING * site.hidden * site.output for site, _ in shapes), default=0) if tokens else 0
    fits = [step.fit_memory(config) for step in flatten(passes) if isinstance(step, Fits) for _, config in shapes]
    trained = after - sum(config.frozen for _, config in shapes)
    return Plan(
        layers=tuple(layers),
        parameters_before=model_parameters,
        parameters_after=after,
        active_parameters=model_parameters - before + round(active),
        trained_parameters=trained,
        active_fraction=active / before if before else 1.0,
        weights=after * item_size,
        peak_memory=kept + largest * (2 * item_size + 4) + max([judging, *fits]) + alive,
        optimizer_memory=trained * (2 * 4 + item_size),
        refusals=tuple((refusal.path, refusal.reason) for refusal in graph.refusals),
        notes=(),
    )


def _planned(site: FeedForward, config: MoEConfig) -> PlannedLayer:
    return PlannedLayer(
        path=site.path,
        kind=site.kind,
        activation=site.activation,
        hidden=site.hidden,
        neurons=site.neurons,
        rows=config.rows,
        experts=config.experts,
        top_k=config.top_k,
        rewrite=site.rewrite.way,
        parameters_before=site.parameters,
        parameters_after=config.parameters,
        active_fraction=config.active_fraction(site.neurons),
    )
