"""What a run did, as data first: the JSON beside the model, the table on the screen."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from moeify.ir.model_graph import ModelGraph
from moeify.pipeline.context import PassContext
from moeify.pipeline.contract import Pass
from moeify.pipeline.judging import NULLS
from moeify.pipeline.layer_nulls import mean_errors, verdict


@dataclass(frozen=True)
class LayerReport:
    """One converted FFN. Parameters count matrices; `active_fraction` is per token (docs/moe-layer.md), at the budget set by
    top_k; with a threshold as a pass measured it on the calibration sample. `measured` holds what passes reported, by name;
    `nulls` what moeify.measure.layer_errors.LayerErrors found (None without calibration data)."""

    path: str
    kind: str
    activation: str
    hidden: int
    neurons: int
    sizes: tuple[int, ...]
    shared: int
    router: str | None
    top_k: int | None
    threshold: float | None
    parameters_before: int
    parameters_after: int
    active_fraction: float
    measured: dict[str, Any]
    nulls: dict[str, Any] | None = None


@dataclass(frozen=True)
class Report:
    """What a run did. data: what the calibration data say of themselves, digest included. aligned: what an alignment with the
    dense model did, if there was one. budget: the active fraction that the recipe was asked for, if it was.

    seconds: by pass name; left out of `to_json`, so that equal runs write equal bytes. passes, seed: what ran; the output
    folder keeps them as recipe.toml.
    """

    layers: tuple[LayerReport, ...]
    untouched: tuple[str, ...]
    refusals: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    seconds: dict[str, float]
    data: dict[str, Any] | None = None
    passes: tuple[Pass, ...] = ()
    seed: int = 0
    aligned: dict[str, Any] | None = None
    budget: float | None = None

    @property
    def active_fraction(self) -> float:
        """Over all converted FFNs, weighted by their size; 1 when none was converted."""
        before = sum(layer.parameters_before for layer in self.layers)
        return sum(layer.active_fraction * layer.parameters_before for layer in self.layers) / before if before else 1.0

    @property
    def nulls(self) -> dict[str, dict[str, Any]]:
        """What was found of each layer that was judged, by path."""
        return {layer.path: layer.nulls for layer in self.layers if layer.nulls is not None}

    @property
    def verdict(self) -> str | None:
        """What has to be said first: that the layers lose to the static mask. None where they do not, or were not judged."""
        found = verdict(self.nulls.values())
        return found if found is None or self.aligned is None else f"before the alignment, {found}"

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the times."""
        plain = asdict(replace(self, passes=()))
        for name in ("seconds", "passes", "seed"):
            del plain[name]
        errors = mean_errors(self.nulls.values())
        return {"verdict": self.verdict, "active_fraction": self.active_fraction, "layer_errors": errors, **plain}

    def __str__(self) -> str:
        lines = [] if self.verdict is None else [self.verdict]
        lines += [
            f"{layer.path}: {layer.kind} {layer.activation}, {layer.neurons} neurons -> {len(layer.sizes)} experts"
            f" (shared {layer.shared}), active {layer.active_fraction:.1%}"
            for layer in self.layers
        ]
        lines += [
            f"{path}: error " + ", ".join(f"{name} {error:.3g}" for name, error in found["errors"].items())
            for path, found in self.nulls.items()
        ]
        lines += [f"{path}: refused, {reason}" for path, reason in self.refusals]
        lines += [f"note: {note}" for note in self.notes]
        lines.append(f"{len(self.layers)} layers converted, active fraction {self.active_fraction:.1%}")
        return "\n".join(lines)


def make_report(graph: ModelGraph, context: PassContext) -> Report:
    """The report of a finished run."""
    layers = []
    for site in graph.sites:
        if (config := graph.spliced.get(site.path)) is None:
            continue
        measured = dict(context.measurements.get(site.path, {}))
        nulls = measured.pop(NULLS, None)
        usual = config.active_fraction(site.neurons)
        layers.append(
            LayerReport(
                path=site.path,
                kind=site.kind,
                activation=site.activation,
                hidden=site.hidden,
                neurons=site.neurons,
                sizes=config.sizes,
                shared=config.shared,
                router=None if config.router is None else config.router.kind,
                top_k=config.top_k,
                threshold=config.threshold,
                parameters_before=site.parameters,
                parameters_after=config.parameters,
                active_fraction=usual if config.threshold is None else measured.get("active_fraction", usual),
                measured=measured,
                nulls=nulls,
            )
        )
    return Report(
        layers=tuple(layers),
        untouched=tuple(site.path for site in graph.sites if site.path not in graph.spliced),
        refusals=tuple((r.path, r.reason) for r in graph.refusals),
        notes=tuple(context.notes),
        seconds=dict(context.seconds),
    )
