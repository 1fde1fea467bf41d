"""torch.export with free batch and sequence sizes, as a graph without in-place writes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from moeify.frontend.trace_shapes import FREE_DIMS
from moeify.frontend.trace_writes import without_writes
from moeify.frontend.waiting_signals import signals_wait
from moeify.ir.model_graph import Batch


def exported(model: nn.Module, example: Batch, free: bool) -> ExportedProgram:
    """The functional program of the model; free: batch and sequence sizes are left open (Dim.AUTO).

    The program as torch.export gives it is used where its writes can be made functional, which is nearly always:
    decomposing it costs twice the export. Otherwise `run_decompositions({})` does it and keeps `linear`. Either way
    node.meta["dropout"] holds the probability of a dropout that is idle in eval mode.

    Ctrl-C waits until it is done. Raises what torch.export raises.
    """
    args, kwargs = (example, {}) if isinstance(example, tuple) else ((), example)
    with quiet_export(), signals_wait():
        program = torch.export.export(
            model, args, kwargs, dynamic_shapes=_dynamic_shapes(example) if free else None, strict=False
        )
        rates = {node.name: rate for node in program.graph.nodes if (rate := _dropout_rate(node))}
        if not without_writes(program.graph):
            program = program.run_decompositions({})
    for node in program.graph.nodes:
        if _dropout_rate(node) or str(node.target) == "aten.clone.default":
            node.meta["dropout"] = next((rates[name] for name in (node.name, *_origins(node)) if name in rates), 0.0)
    return program


def _dynamic_shapes(example: Batch) -> Any:
    def free(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return None
        return dict.fromkeys(range(min(FREE_DIMS, leaf.ndim)), Dim.AUTO)

    return pytree.tree_map(free, example)


def _dropout_rate(node: fx.Node) -> float:
    """The probability of an eval-mode dropout that would act in training; 0.0 for any other node."""
    names = ("aten.dropout.default", "aten.feature_dropout.default", "aten.alpha_dropout.default")
    return float(node.args[1]) if str(node.target) in names else 0.0  # type: ignore[arg-type]  # p is a float in their schema


def _origins(node: fx.Node) -> Iterator[str]:
    """The names that the node had before decomposition."""
    sources = list(node.meta.get("from_node") or ())
    while sources:
        source = sources.pop()
        yield source.name
        sources.extend(source.from_node or ())


@contextmanager
def quiet_export() -> Iterator[None]:
    """Without the tracer's own warnings and log lines: what matters of them is checked at a second shape."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
