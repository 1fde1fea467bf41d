"""The written file in ONNX Runtime against the eager model, at other sizes than were traced."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from moeify.errors import ConversionError, InputError
from moeify.export.onnx.attach import MoENode
from moeify.export.onnx.distance import FLIPS, compare
from moeify.export.onnx.interface import Interface
from moeify.export.onnx.report import Check
from moeify.export.onnx.sensitivity import excused
from moeify.export.onnx.trials import EXAMPLE, decoder_trials, flat_trials
from moeify.layers.moe_layer import MoELayer
from moeify.layers.stochastic_router import StochasticRouter
from moeify.runtime.native import wanted
from moeify.runtime.session import session

Array = NDArray[Any]
#: A trial: its name, and what the model and the session give for the same inputs.
Trial = tuple[str, Callable[[], list[Array]], Callable[[Any], list[Array]]]


def verify(
    path: Path, model: nn.Module, interface: Interface, layers: tuple[MoENode, ...], dtype: str, lowering: str
) -> tuple[Check, ...]:
    """First with all experts on (k raised), where no near tie can fall the other way; then as the model is, unless a layer
    draws its experts at random, which file and model do not do alike. Each by the bodies, as stock ONNX Runtime does it, and by
    the native library, so far as the lowering has the one and the machine the other.

    Output weights that were fitted to half of the experts give more than twice too much with all of them on, and the layers
    behind make small differences large: there the bound is what noise of the size of rounding does to the model itself.

    Raises ConversionError where a distance is beyond its bound.
    """
    raised = {
        f"{layer.name}.k": np.array(layer.shape.experts) for layer in layers if layer.k not in (None, layer.shape.experts)
    }
    choosing = bool(raised) or any("threshold" in layer.shape.present for layer in layers)
    checks: list[Check] = []
    if raised:
        with all_experts_on(model):
            checks += _run(path, model, interface, dtype, lowering, raised, choosing, "all experts on, ")
    if raised and any(isinstance(m, StochasticRouter) and m.mode == "random" for m in model.modules()):
        return tuple(checks)
    return (*checks, *_run(path, model, interface, dtype, lowering, {}, choosing, ""))


def _run(
    path: Path,
    model: nn.Module,
    interface: Interface,
    dtype: str,
    lowering: str,
    replace: Mapping[str, Array],
    choosing: bool,
    prefix: str,
) -> Iterator[Check]:
    allowed, known = FLIPS if choosing and not replace else 0.0, dict[str, list[Array] | None]()
    for native in _libraries(lowering):
        built = session(path, replace=replace, native=native)  # one at a time: each holds all weights
        trials = decoder_trials(model, interface) if interface.cache_layers else flat_trials(interface, built)
        for name, eager, exported in trials:
            if name not in known:
                known[name] = _expected(interface, name, eager)
            if (expected := known[name]) is None:
                continue
            full = f"{prefix}{name}{', native library' if native else ''}"
            check = compare(full, expected, exported(built), dtype, allowed)
            if check.distance > check.bound and replace:
                check = dataclasses.replace(check, bound=max(check.bound, excused(model, eager, expected, dtype)))
            if check.distance > check.bound:
                raise ConversionError(
                    f"{check.name}: ONNX Runtime is {check.distance:.1e} of the largest value away from the model, "
                    f"more than {check.bound:.0e}; nothing was written"
                )
            yield check


def _expected(interface: Interface, name: str, eager: Callable[[], list[Array]]) -> list[Array] | None:
    """What the model gives; None where a graph that came in does not take the sizes that its inputs are said to have free."""
    try:
        return eager()
    except InputError:
        if not interface.may_refuse or name == EXAMPLE:
            raise
        return None


def _libraries(lowering: str) -> tuple[bool, ...]:
    """Without the native library and with it, where either makes a difference and can be."""
    if lowering == "native":
        return (True,)
    return (False, True) if lowering in ("auto", "portable") and wanted() else (False,)


@contextmanager
def all_experts_on(model: nn.Module) -> Iterator[None]:
    """Inside, the top-k rule of every MoE layer lets all experts through."""
    layers = [module for module in model.modules() if isinstance(module, MoELayer) and module.top_k is not None]
    kept = [layer.top_k for layer in layers]
    try:
        for layer in layers:
            layer.top_k = layer.config.experts
        yield
    finally:
        for layer, k in zip(layers, kept):
            layer.top_k = k
