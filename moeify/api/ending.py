"""What a conversion ends with, an alignment and exports, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moeify.api.aligning import check_alignment
from moeify.api.arguments import Data, Source, check_exports
from moeify.api.onnx_source import check_onnx_output, is_onnx

if TYPE_CHECKING:
    from moeify.training.alignment import Alignment


def check_ending(
    source: Source, output: str | Path | None, calibrate: Data | None, align: Alignment | None, align_on: Data | None,
    export: Sequence[str], *, dtype: str, device: str,
) -> None:  # fmt: skip
    """Raises UsageError for exports that cannot be made of such a model or have no folder to go to, an alignment without data,
    data without one, and for what an ONNX file cannot be followed by; MissingExtraError where a package is absent."""
    check_exports(export, output, dtype=dtype, device=device)
    check_alignment(align, calibrate, align_on)
    if is_onnx(source):
        check_onnx_output(align, export)


def holds_whole(export: Sequence[str]) -> bool:
    """Does an export work on the whole model, rather than layer by layer?"""
    return bool(set(export) - {"torch"})
