"""The active fraction that a pipeline was asked for."""

from __future__ import annotations

from collections.abc import Iterable

from moeify.ir.facts import Budget
from moeify.pipeline.contract import Pass


def budget_of(passes: Iterable[Pass]) -> float | None:
    """The option `active` of the pass that divides a budget among layers, else of the last rewrite that has one; None where no
    pass does. passes: flat, in order."""
    known = [(step, float(active)) for step in passes if isinstance(active := getattr(step, "active", None), int | float)]
    divided = [active for step, active in known if Budget in step.gives]
    rewrites = [active for step, active in known if step.rewrites]
    return next(iter((*divided, *reversed(rewrites))), None)
