"""Checks that every pass finds the facts that it needs, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from moeify.errors import UsageError
from moeify.ir.facts import Budget, CalibrationData, Fact, FeedForwards, OutputGoals
from moeify.pipeline.contract import Pass

#: Facts that no rewrite of a site makes untrue: those of the whole model, what a site may spend, and what it ought to say.
LASTING = frozenset({FeedForwards, CalibrationData, Budget, OutputGoals})

Facts = frozenset[type[Fact]]


def check_order(passes: Sequence[Pass], given: Facts, with_data: bool = True) -> Facts:
    """The facts there are after the passes. Raises UsageError for a pass whose needs no earlier pass gives.

    With `with_data` False passes that take calibration data are left out, and what hangs on them is refused.
    """
    for index, step in enumerate(passes):
        if not isinstance(step, Pass):
            raise UsageError(f"step {index + 1} of the pipeline is {step!r}, which is not a pass")
        if CalibrationData in step.needs and not with_data:
            continue
        for fact in step.needs:
            if fact not in given:
                raise UsageError(_missing(step, fact, passes, with_data))
        inner: Sequence[Pass] = getattr(step, "passes", ())
        given = check_order(inner, given, with_data) if inner else _after(step, given)
    return given


def _after(step: Pass, given: Facts) -> Facts:
    if step.rewrites:
        given = given & (LASTING | frozenset(step.keeps))
    return given | frozenset(step.gives)


def _missing(step: Pass, fact: type[Fact], passes: Sequence[Pass], with_data: bool) -> str:
    givers = [p for p in passes if fact in p.gives]
    if not with_data and any(CalibrationData in p.needs for p in givers):
        return f"{step.name}, as it is set, needs calibration data: pass --calibrate FILE, or choose another strategy"
    if givers:
        return f"{step.name} needs {fact.__name__}, which {givers[0].name} gives: put {givers[0].name} before it"
    return f"{step.name} needs {fact.__name__}, which no earlier pass gives"
