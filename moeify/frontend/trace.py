"""Tracing: a live model and an example batch become a functional fx graph, checked against the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from moeify.errors import InputError
from moeify.frontend.trace_check import check_example, check_other_shapes, run_eager
from moeify.frontend.trace_compare import one_line
from moeify.frontend.trace_export import exported
from moeify.frontend.trace_lift import lifted_program
from moeify.frontend.trace_shapes import distinct, without_ones
from moeify.frontend.trace_state import tracing_state, unchanged_weights, watch_modules
from moeify.frontend.traced import Traced
from moeify.ir.model_graph import Batch

__all__ = ["Traced", "trace"]


def trace(model: nn.Module, example: Batch) -> Traced:
    """The model as a functional graph, in eval mode and without a key-value cache; the model is left as it was.

    The graph is run at the example, and at other batch and sequence sizes, beside the model itself: `Traced.dynamic`
    and `Traced.notes` say what came out. Weights are not copied. A model on the meta device cannot be run beside its graph:
    many ask for values on the way, though not while they are traced.

    Raises InputError where the model does not run on the example, changes its weights as it runs, cannot be traced, or differs
    from its own trace.
    """
    with tracing_state(model), torch.random.fork_rng(devices=[]):
        if next(model.parameters(), torch.empty(0)).is_meta:
            return _outline(model, _on_device(without_ones(distinct(example)), model))
        with watch_modules(model) as plain, unchanged_weights(model):
            example, expected = _runnable(model, _on_device(distinct(example), model))
        found = replace(_traced(model, example), plain_modules=plain())
        check_example(found, model, example, expected)
        if found.notes:
            return found
        dynamic, notes = check_other_shapes(found, model, example)
        return replace(found, dynamic=dynamic, notes=notes)


def trace_outline(model: nn.Module, example: Batch) -> Traced:
    """The graph of a model on the meta device at the sizes of the example alone: enough to find its sites, in half the time.

    Raises what torch.export raises.
    """
    with tracing_state(model), torch.random.fork_rng(devices=[]), watch_modules(model) as plain:
        example = _on_device(without_ones(distinct(example)), model)
        found = lifted_program(exported(model, example, free=False), model, example)
        return replace(found, plain_modules=plain(), dynamic=False)


def _outline(model: nn.Module, example: Batch) -> Traced:
    with watch_modules(model) as plain:
        found = _traced(model, example)
    return replace(found, plain_modules=plain())


def _runnable(model: nn.Module, example: Batch) -> tuple[Batch, list[Any]]:
    """The example without sizes of 1 if the model takes it so, else the example as it is; and the model's outputs."""
    grown = without_ones(example)
    try:
        return grown, run_eager(model, grown)
    except Exception:  # a model may insist on a batch of one: then the example itself decides
        pass
    try:
        return example, run_eager(model, example)
    except Exception as error:
        raise InputError(f"{type(model).__name__} does not run on its example inputs: {one_line(error)}") from error


def _traced(model: nn.Module, example: Batch) -> Traced:
    try:
        return lifted_program(exported(model, example, free=True), model, example)
    except Exception as error:  # torch.export raises errors of many kinds; fixed sizes are tried next
        cause = one_line(error)
    try:
        found = lifted_program(exported(model, example, free=False), model, example)
    except Exception as error:
        raise InputError(f"torch.export cannot trace {type(model).__name__}: {one_line(error)}") from error
    return replace(found, dynamic=False, notes=(f"batch and sequence sizes are fixed: {cause}",))


def _on_device(example: Batch, model: nn.Module) -> Batch:
    """The example on the device of the model's weights."""
    first = next(model.parameters(), None)
    if first is None:
        return example
    moved: Batch = pytree.tree_map_only(torch.Tensor, lambda leaf: leaf.to(first.device), example)
    return moved
