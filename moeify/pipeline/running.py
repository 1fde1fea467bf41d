"""Runs passes in order and holds each to its word."""

from __future__ import annotations

import time
from collections.abc import Sequence

from moeify.errors import ConversionError, MoeifyError
from moeify.ir.facts import CalibrationData, Fact
from moeify.ir.model_graph import ModelGraph
from moeify.pipeline.context import PassContext
from moeify.pipeline.contract import Pass
from moeify.pipeline.order import LASTING


def run_passes(passes: Sequence[Pass], graph: ModelGraph, context: PassContext) -> bool:
    """Runs the passes one after another on the graph's sites; returns whether a spec changed.

    Raises ConversionError where a pass breaks its contract or fails with a foreign exception; MoeifyErrors pass through.
    """
    outer = context.wanted
    changed = False
    for index, step in enumerate(passes):
        if skipped(step, context):
            continue
        later = (fact for other in passes[index + 1 :] for fact in (*other.needs, *other.uses))
        context.wanted = outer | frozenset(later)
        changed |= _run_one(step, graph, context, [p.name for p in passes[:index]])
    context.wanted = outer
    return changed


def skipped(step: Pass, context: PassContext) -> bool:
    """A pass that takes calibration data is left out of a run without."""
    return CalibrationData in step.needs and context.batches is None


def _run_one(step: Pass, graph: ModelGraph, context: PassContext, before: list[str]) -> bool:
    specs, spliced = dict(graph.specs), len(graph.spliced)
    started = time.perf_counter()
    try:
        changed = step.run(graph, context)
    except MoeifyError:
        raise
    except Exception as error:
        trail = f" after {', '.join(before)}" if before else ""
        raise ConversionError(f"pass {step.name} failed{trail}: {type(error).__name__}: {error}") from error
    finally:
        context.seconds[step.name] = context.seconds.get(step.name, 0.0) + time.perf_counter() - started
        for site in graph.sites:
            graph.host.let_go(site)
    really = len(graph.spliced) != spliced or specs.keys() != graph.specs.keys()
    really = really or any(graph.specs[path] is not spec for path, spec in specs.items())
    if really and not step.rewrites:
        raise ConversionError(f"pass {step.name} is an analysis but changed a spec; set rewrites = True or leave specs alone")
    if really != changed:
        raise ConversionError(f"pass {step.name} returned {changed} but {'a' if really else 'no'} spec changed")
    if changed:
        keep: tuple[type[Fact], ...] = (*step.keeps, *step.gives, *LASTING)
        for site in graph.sites:
            context.drop(site, keep)
    return changed
