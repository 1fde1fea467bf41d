"""A model with an interface => an ONNX graph with opaque MoE nodes, its axes named, equal tensors stored once."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from moeify.errors import ConversionError
from moeify.export.onnx.axes import name_axes
from moeify.export.onnx.interface import HELD, Interface
from moeify.export.onnx.simplify import simplify
from moeify.export.onnx.store_once import store_once
from moeify.export.onnx.translation import translation_table

if TYPE_CHECKING:
    import onnx_ir as ir

Axes = tuple[dict[int, Any], ...]


def trace(interface: Interface, opset: int, axes: Axes | None = None) -> ir.Model:
    """axes: of each input those that are free, where it is known better than from the names and types of the inputs.

    Raises ConversionError where torch.onnx.export cannot translate the model.
    """
    if interface.cache_layers:
        program = _decoder_program(interface, opset)
    else:
        program = _program(interface, axes or _free_axes(interface), opset)
    simplify(program.model)
    store_once(program.model)
    _drop_prefix(program.model)
    name_axes(program.model, interface, _fixed(program))
    model: ir.Model = program.model
    return model


def _decoder_program(interface: Interface, opset: int) -> Any:
    """One symbol for all batches and one for all cache lengths makes smaller graphs, but more demands on the model."""
    try:
        return _program(interface, _shared_axes(interface), opset)
    except ConversionError:
        return _program(interface, _free_axes(interface), opset)


def _program(interface: Interface, axes: Axes, opset: int) -> Any:
    with _quiet():
        try:
            return torch.onnx.export(
                interface.module,
                interface.example,
                input_names=list(interface.inputs),
                output_names=list(interface.outputs),
                dynamic_shapes=(axes,),
                opset_version=opset,
                custom_translation_table=translation_table(),
                dynamo=True,
                verbose=False,
                optimize=False,
            )
        except Exception as error:  # the exporter wraps whatever happens in private classes
            raise ConversionError(f"torch.onnx.export cannot translate the model: {_root(error)}") from error


def _free_axes(interface: Interface) -> Axes:
    """Batch and sequence; all axes of integers, of images the batch. AUTO: an axis that the model fixes becomes fixed."""
    held = _held(interface)

    def free(name: str, tensor: Tensor) -> range | tuple[int, ...]:
        if name.startswith("past_key_values."):
            return (0, 2)
        if tensor.is_floating_point():
            return range(1 if tensor.ndim > 3 else min(2, tensor.ndim - 1))
        return range(tensor.ndim)

    pairs = zip(interface.inputs, interface.example)
    axes = ([axis for axis in free(name, tensor) if axis not in held.get(name, ())] for name, tensor in pairs)
    return tuple(dict.fromkeys(found, torch.export.Dim.AUTO) for found in axes)


def _held(interface: Interface) -> dict[str, set[int]]:
    """Axes that a program of torch.export was made for one size of: it refuses others, even those its graph would take."""
    program = interface.module.get_submodule(HELD)
    if not isinstance(program, fx.GraphModule):
        return {}
    values = {str(node.target): node.meta.get("val") for node in program.graph.find_nodes(op="placeholder")}
    return {
        name: {axis for axis, size in enumerate(value.shape) if isinstance(size, int)}
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def _shared_axes(interface: Interface) -> Axes:
    batch, past, free = torch.export.Dim("batch", min=1), torch.export.Dim("past", min=1), torch.export.Dim.AUTO
    cached = (name.startswith("past_key_values.") for name in interface.inputs)
    return tuple({0: batch, 2: past} if cache else {0: batch, 1: free} for cache in cached)


def _drop_prefix(model: ir.Model) -> None:
    """Initializers are named as the model's own parameters."""
    for name in list(model.graph.initializers):
        if name.startswith(f"{HELD}."):
            model.graph.initializers[name].name = name.removeprefix(f"{HELD}.")


def _fixed(program: Any) -> dict[str, int]:
    """Symbols of axes that were offered as free but take one size only, as the trace found out."""
    ranges = program.exported_program.range_constraints.items()
    return {str(symbol): int(span.lower) for symbol, span in ranges if span.lower == span.upper}


def _root(error: BaseException) -> str:
    """The first line of the first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs and warns about its own inside."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
