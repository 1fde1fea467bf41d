"""What a report says of its layers' nulls: means over layers, a table, and whether routing was worth its while."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moeify.measure.layer_errors import NAMES
from moeify.measure.verdicts import EXACT, WAYS_OUT

#: What was measured of one layer: the fields of LayerErrors, as plain data.
Nulls = Mapping[str, Any]


def mean_errors(nulls: Iterable[Nulls]) -> dict[str, float]:
    """The mean error over layers by name, for the names that every layer has; every layer weighs the same."""
    errors: Sequence[Mapping[str, float]] = [layer["errors"] for layer in nulls]
    shared = [name for name in NAMES if errors and all(name in layer for layer in errors)]
    return {name: sum(layer[name] for layer in errors) / len(errors) for name in shared}


def verdict(nulls: Iterable[Nulls]) -> str | None:
    """A sentence where layers route and are worse, summed over all, than the static mask; else None."""
    nulls = tuple(nulls)
    if not any(layer["chooses"] for layer in nulls):
        return None
    means = mean_errors(nulls)
    built, static = means["converted"], means["static-mask"]
    if not built > max(static, EXACT):
        return None
    return (
        f"the conversion loses to a static mask of the same weights, which routes nothing: the layers' outputs are off by"
        f" {built:.3g} on average (relative squared error), the static mask's by {static:.3g}; {WAYS_OUT}"
    )


def error_table(nulls: Mapping[str, Nulls]) -> list[tuple[Any, ...]]:
    """Rows, the header first, the mean last: the relative squared error of each layer, by path. Empty without layers."""
    if not nulls:
        return []
    rows = [(path, *(layer["errors"].get(name) for name in NAMES)) for path, layer in nulls.items()]
    means = mean_errors(nulls.values())
    return [("error of layer", *NAMES), *rows, ("mean", *(means.get(name) for name in NAMES))]


def seen_before(nulls: Iterable[Nulls]) -> list[str]:
    """A note where layers were judged on tokens that passes had looked at, as the data had no others."""
    if all(layer["held_out"] for layer in nulls):
        return []
    return [
        "the calibration data end before layers could be judged on tokens of their own: their errors are on tokens that passes "
        "had looked at; give more data, or fewer --tokens"
    ]
