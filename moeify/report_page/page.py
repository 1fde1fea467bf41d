"""The whole page as text."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from moeify.measure.load import LayerLoad
from moeify.measure.routing_facts import RoutingFacts
from moeify.measure.verdicts import EXACT, verdicts
from moeify.pipeline.layer_nulls import mean_errors
from moeify.report_page.drawing import short_names, tick_text
from moeify.report_page.folder_facts import FolderFacts
from moeify.report_page.measured_files import Speed, SweepPoint
from moeify.report_page.views import (
    COLUMNS,
    ERROR_NAMES,
    error_charts,
    quality_charts,
    speed_bars,
    strips,
    together_view,
)


@dataclass(frozen=True)
class Contents:
    """What a page is made of; None: not measured. data: what the measured text says of itself. about_dense: why neurons have no
    order before, where they have none."""

    folder: FolderFacts
    routing: RoutingFacts | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    sweep: Sequence[SweepPoint] | None = None
    speed: Speed | None = None
    about_dense: str = ""

    @cached_property
    def measured(self) -> dict[str, float]:
        """Active fractions by path."""
        return {} if self.routing is None else {load.path: load.active_fraction for load in self.routing.loads}

    @cached_property
    def loads(self) -> tuple[LayerLoad, ...]:
        """Of layers that have a choice."""
        return () if self.routing is None else tuple(load for load in self.routing.loads if load.experts > 1)

    @property
    def left_out(self) -> tuple[str, ...]:
        """The ids of the sections that there are no data for."""
        absent = [] if any(layer.errors for layer in self.folder.layers) else ["errors"]
        absent += [] if self.loads else ["load", "entropy"]
        absent += [] if self._together else ["co-activation"]
        return (*absent, *(["quality"] if self.sweep is None else []), *(["speed"] if self.speed is None else []))

    @property
    def _together(self) -> bool:
        return self.routing is not None and any(t.neurons is not None or t.experts is not None for t in self.routing.together)


def first_line(contents: Contents) -> tuple[str, str]:
    """(good, bad or plain, what is to be said first)."""
    facts = contents.folder
    active = facts.active_fraction(contents.measured)
    if contents.routing is not None and (found := next(verdicts((), active, facts.budget), None)) is not None:
        return "bad", _sentence(found)
    if facts.verdict is not None:
        return "bad", _sentence(facts.verdict)
    judged = [layer for layer in facts.layers if layer.errors]
    means = mean_errors([{"errors": layer.errors} for layer in judged])
    if "converted" not in means or "static-mask" not in means:
        return "plain", "Not judged: no layer was compared with its dense FFN, as the conversion had no calibration text."
    error = f"{means['converted']:.3g} (relative squared error, mean over layers)"
    if means["converted"] <= EXACT:
        return "good", f"The layers compute what the dense ones compute: their outputs are off by {error}."
    if any(layer.chooses for layer in judged):
        static = f"{means['static-mask']:.3g}"
        return (
            "good",
            "The conversion beats a static mask of as many weights, none of them fitted anew: the layers' outputs are off by"
            f" {error}, its by {static}.",
        )
    return "plain", f"The layers do not route: their outputs are off by {error}."


def render(contents: Contents) -> str:
    """One HTML document that needs no other file. Every text of the model and its data is escaped; equal contents give equal
    text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("moeify.report_page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "count": count, "figure": figure, "size": size, "shell": shlex.quote}
    return environment.get_template("page.html").render(**_names(contents))


def _names(contents: Contents) -> dict[str, Any]:
    """What the template knows."""
    facts, routing = contents.folder, contents.routing
    active = facts.active_fraction(contents.measured)
    paths = [layer.path for layer in facts.layers]
    names = dict(zip(paths, short_names(paths)))
    by_path = {layer.path: layer for layer in facts.layers}
    tone, verdict = first_line(contents)
    together = () if routing is None else [together_view(found, by_path[found.path]) for found in routing.together]
    return {
        "facts": facts,
        "contents": contents,
        "tone": tone,
        "verdict": verdict,
        "active": active,
        "names": names,
        "error_charts": error_charts(facts.layers),
        "errors": mean_errors([{"errors": layer.errors} for layer in facts.layers if layer.errors]),
        "strips": strips(contents.loads, [names.get(load.path, load.path) for load in contents.loads]),
        "together": [view for view in together if view.panels],
        "no_neurons": [(view.path, view.together.reason) for view in together if view.together.reason],
        "no_before": sorted({v.together.reason_before for v in together if v.together.reason_before}),
        "quality_charts": quality_charts(contents.sweep or (), active),
        "speed_bars": speed_bars(contents.speed.rows if contents.speed is not None else ()),
        **_words(contents),
    }


def _words(contents: Contents) -> dict[str, Any]:
    layers = contents.folder.layers
    return {
        "tick_text": tick_text,
        "choices": list(dict.fromkeys(layer.choice for layer in layers)) or ["-"],
        "error_names": [name for name in ERROR_NAMES if any(name in layer.errors for layer in layers)],
        "error_titles": ERROR_NAMES
        | {"converted": "error", "oracle-routing": "best choice", "full-rank-compensation": "full rank"},
        "most_load": max((max(load.loads) for load in contents.loads), default=0.0) or 1.0,
        "many": any(load.experts > COLUMNS for load in contents.loads),
        "crossed": any(point.void for point in contents.sweep or ()),
        "several_subjects": contents.speed is not None and len({row.subject for row in contents.speed.rows}) > 1,
    }


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def count(value: float) -> str:
    return f"{value:,}"


def figure(value: float | None) -> str:
    """Three digits that say something."""
    return "-" if value is None else f"{value:#.3g}".rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"


def size(value: int) -> str:
    """A count of parameters as people say it."""
    for unit, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}" if value / unit < 1000 else f"{value / unit:,.0f}{name}"
    return str(value)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
