"""What a layer costs in each form: a few constants times what there is to do, for choosing among forms.

Measured and fitted by `python -m benchmarks.lowerings` (one thread, float32, ONNX Runtime 1.32, an AMD EPYC with AVX-512).
Other machines move them all alike, and only ratios matter here. A tenth is what the fit is worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from moeify.export.onnx.forms import Kind

Costed = Literal["dense"] | Kind


@dataclass(frozen=True)
class Work:
    """The routed part of a layer. active: experts of a token, on average; weights: of all experts, rows: as many neurons."""

    hidden: int
    output: int
    experts: int
    active: float
    rows: int
    weights: int


#: ms for one of each feature, in the order of `features`.
COSTS: Mapping[Costed, tuple[float, ...]] = MappingProxyType(
    {
        "dense": (0.0024, 0.17, 0.018),  # off by 4% (median), 26% at most
        "unrolled": (0, 0.068, 0.24, 0.016, 0.00074, 0.0084),  # off by 9% (median), 33% at most
        "gathered": (0.026, 0.054, 0.43, 0.021),  # off by 9% (median), 59% at most
        "masked": (0.013, 0.044, 0.19, 0.018, 0.00081),  # off by 5% (median), 33% at most
        "contrib": (0.017, 0.12, 0.36, 0.022, 0.00016, 0.00035),  # off by 9% (median), 38% at most
    }
)


def milliseconds(kind: Costed, work: Work, tokens: int) -> float:
    """The expected time of a call of so many tokens, on one thread."""
    return sum(cost * feature for cost, feature in zip(COSTS[kind], features(kind, work, tokens), strict=True))


def features(kind: Costed, work: Work, tokens: int) -> tuple[float, ...]:
    """What there is to do: for the call; for routing; to read weights (millions); to multiply (millions); to move between the
    tokens and their experts (thousands)."""
    weights, each = work.weights / 1e6, work.weights / 1e6 / work.experts
    touched = work.experts * (1 - (1 - work.active / work.experts) ** tokens)
    if kind == "dense":
        return 1.0, weights, tokens * weights
    routed = tokens * work.experts / 1e3
    if kind == "masked":
        return 1.0, routed, weights, tokens * weights, tokens * work.rows / 1e3
    if kind == "gathered":
        return 1.0, routed, touched * each, tokens * touched * each
    pairs = tokens * work.active
    moved = pairs * (work.hidden + work.output) / 1e3
    return 1.0, routed, touched * each, pairs * each, moved, float(work.experts)
