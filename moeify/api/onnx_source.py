"""What a conversion of an ONNX file cannot do, said before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from moeify.api.arguments import Source
from moeify.errors import UsageError
from moeify.frontend.sniff import sniff
from moeify.ir.facts import NeuronImportance
from moeify.pipeline.contract import Pass

_GIVE = "give the PyTorch model that it was exported from"


def is_onnx(source: Source) -> bool:
    """Is it an ONNX file? Of a path that does not exist the loader says so, after all that is wrong with the options."""
    path = None if isinstance(source, nn.Module) else Path(source).expanduser()
    return path is not None and path.exists() and sniff(path) == "onnx"


def check_onnx_passes(steps: Sequence[Pass], dtype: str, device: str) -> None:
    """Raises UsageError for a pass that needs what a graph without gradients has not."""
    for step in steps:
        if NeuronImportance in step.gives:
            raise UsageError(f"{step.name} needs gradients, and an ONNX file has none: choose another recipe, or {_GIVE}")
        if getattr(step, "checkpoints", ()):
            raise UsageError(f"{step.name}.checkpoints are of a PyTorch model, not of an ONNX file: leave them out, or {_GIVE}")
    if dtype != "fp32":
        raise UsageError(f"an ONNX file is converted in fp32, not in {dtype}: leave out --dtype, and round the result")
    if device != "cpu":
        raise UsageError(f"an ONNX file is converted on the CPU: leave out --device {device}")


def check_onnx_output(align: object | None, export: Sequence[str]) -> None:
    """Raises UsageError for what a graph cannot be followed by."""
    if align is not None:
        raise UsageError(f"an alignment trains, and an ONNX file has no gradients: leave out --align, or {_GIVE}")
    if "hf" in export:
        raise UsageError(f"a stock checkpoint is made of a PyTorch model, not of an ONNX file: leave out hf, or {_GIVE}")
    from moeify.export.onnx.packages import check_packages

    check_packages()
