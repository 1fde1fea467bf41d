"""The packages that an ONNX export needs."""

from __future__ import annotations

import importlib

from moeify.errors import MissingExtraError


def check_packages() -> None:
    """Raises MissingExtraError where one is absent."""
    for name in ("onnx", "onnx_ir", "onnxruntime", "onnxscript"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingExtraError(error.name or name, "onnx", "ONNX export") from error
