"""The native operator library: a kernel of `moeify::MoE` for ONNX Runtime, built by the installation where it can be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from moeify.errors import UsageError

if TYPE_CHECKING:
    import onnxruntime

#: With MOEIFY_NATIVE=0 in the environment, `session` goes without the library.
SWITCH = "MOEIFY_NATIVE"


def library() -> Path | None:
    """The shared library, for `register_custom_ops_library` of any language; None where it was not built."""
    built = (Path(__file__).with_name(f"libmoeify{suffix}") for suffix in (".so", ".dylib"))
    return next((path for path in built if path.is_file()), None)


def wanted() -> bool:
    """Is there a library, and no word in the environment against it?"""
    return os.environ.get(SWITCH) != "0" and library() is not None


def register(options: onnxruntime.SessionOptions) -> None:
    """Sessions made with these options run `moeify::MoE` by the native library instead of its function body.

    Raises UsageError where the library was not built or cannot be loaded.
    """
    path = library()
    if path is None:
        raise UsageError(
            "the native operator library was not built: install a C++ compiler (g++ or clang++) and moeify again; "
            "without it exported files run by their function bodies"
        )
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{path}: ONNX Runtime cannot load it: {reason}; install moeify again, or set {SWITCH}=0") from error
