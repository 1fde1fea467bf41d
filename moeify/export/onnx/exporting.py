"""A model, converted or dense, as one ONNX file that stock ONNX Runtime runs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from moeify.errors import ConversionError, UsageError
from moeify.export.atomic import check_target, whole_file
from moeify.export.onnx.attach import MoENode
from moeify.export.onnx.body import OPSET
from moeify.export.onnx.calm import calm
from moeify.export.onnx.distance import BOUNDS
from moeify.export.onnx.interface import Interface
from moeify.export.onnx.lowering.choices import TOKENS, check_lowering
from moeify.export.onnx.lowering.lower import lower
from moeify.export.onnx.model_interface import model_interface
from moeify.export.onnx.packages import check_packages
from moeify.export.onnx.precision.choices import check_precision
from moeify.export.onnx.precision.product_inputs import product_inputs
from moeify.export.onnx.precision.rounded_graph import lower_precision
from moeify.export.onnx.report import Check, Lowered, OnnxReport, Port
from moeify.export.onnx.splicing import onnx_interface, spliced_graph
from moeify.export.onnx.tracing import trace
from moeify.export.onnx.verify import verify
from moeify.frontend.onnx.model import OnnxModel
from moeify.ir.model_graph import Batch
from moeify.layers.folding import folded_layers

if TYPE_CHECKING:
    import onnx_ir as ir

#: Protobuf ends at 2 GB; beyond this much data the weights go to `NAME.onnx.data` beside the file.
EMBEDDED = 1_900_000_000


def export_onnx(
    model: nn.Module,
    example: Batch,
    output: Path,
    *,
    force: bool = False,
    opset: int = OPSET,
    precision: str = "fp32",
    lowering: str = "auto",
    tokens: tuple[int, ...] = TOKENS,
    calibrate: Iterable[Batch] = (),
) -> OnnxReport:
    """Writes `output` (and `output.data` beyond 2 GB) once ONNX Runtime has given what the model gives.

    precision: fp32, fp16, int8 or int4: how weights are stored; calibrate: batches by which int8 and int4 are chosen
    (docs/quantisation.md). lowering: what an MoE layer becomes, tokens: how many a call will have (docs/onnx.md). Composed rows
    are folded. Hugging Face decoders take and give their cache, encoder-decoders are one graph without one; batch and sequence
    are free. The model is left as it was. Raises UsageError for a bad option, InputError for batches that do not fit,
    OutputError where the file cannot be written, ConversionError where the model cannot be translated, a layer has no such
    lowering, or the file computes something else.
    """
    started = time.monotonic()
    _check(model, opset, precision)
    check_lowering(lowering, tokens)
    check_target(output, force=force)
    with calm(model), whole_file(output, force) as part:
        with folded_layers(model):  # the operator takes plain rows
            interface, graph = _traced(model, example, opset)
        inputs = product_inputs(graph, interface, calibrate) if calibrate != () else {}
        rounded = lower_precision(graph, precision, inputs)
        layers, lowered = lower(graph, lowering, tokens)
        data = _save(graph, part)
        checks = verify(part, model, interface, layers, _dtype(model) if precision == "fp32" else precision, lowering)
        size = part.stat().st_size
        if data is not None:
            size += data.stat().st_size
            with whole_file(output.with_name(data.name), force) as place:
                os.replace(data, place)
        report = _report(graph, output, layers, lowered, checks, size, time.monotonic() - started)
        return replace(report, precision=precision, stored=rounded.stored, calibrated=rounded.chosen)


def _traced(model: nn.Module, example: Batch, opset: int) -> tuple[Interface, ir.Model]:
    """The graph with opaque MoE nodes: of a torch model by a trace, of an ONNX graph by taking its layers in."""
    if isinstance(model, OnnxModel):
        assert isinstance(example, dict)
        return onnx_interface(model, example), spliced_graph(model)
    interface = model_interface(model, example)
    return interface, trace(interface, opset)


def _check(model: nn.Module, opset: int, precision: str) -> None:
    check_precision(precision, _dtype(model))
    check_packages()
    import onnx

    if not OPSET <= opset <= onnx.defs.onnx_opset_version():
        raise UsageError(f"opset is {opset}: choose from {OPSET} to {onnx.defs.onnx_opset_version()}")
    if (dtype := _dtype(model)) not in BOUNDS:
        raise ConversionError(f"ONNX Runtime's CPU cannot run a model in {dtype}; convert it first: model.float()")


def _dtype(model: nn.Module) -> str:
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()} or {torch.float32}
    low = [dtype for dtype in (torch.bfloat16, torch.float16, torch.float64) if dtype in dtypes]
    return str(low[0] if low else torch.float32).removeprefix("torch.")


def _save(graph: ir.Model, part: Path) -> Path | None:
    """Gives the path of the external data, None where there is none."""
    import onnx_ir as ir

    total = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value is not None)
    if total <= EMBEDDED:
        ir.save(graph, part)
        return None
    data = part.with_name(f"{part.name}.data")
    ir.save(graph, part, external_data=data.name)
    return data


def _report(
    graph: ir.Model,
    output: Path,
    layers: tuple[MoENode, ...],
    lowered: tuple[Lowered, ...],
    checks: tuple[Check, ...],
    size: int,
    seconds: float,
) -> OnnxReport:
    def ports(values: list[ir.Value]) -> tuple[Port, ...]:
        return tuple(
            Port(v.name or "", str(v.dtype).lower(), tuple(d if isinstance(d, int) else str(d) for d in v.shape or ()))
            for v in values
        )

    names = tuple(layer.name for layer in layers)
    inputs, outputs = ports(list(graph.graph.inputs)), ports(list(graph.graph.outputs))
    return OnnxReport(str(output), inputs, outputs, len(graph.graph), names, size, checks, seconds, lowered)
