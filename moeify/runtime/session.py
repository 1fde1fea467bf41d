"""ONNX Runtime sessions on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moeify.errors import InputError, MissingExtraError
from moeify.runtime.native import register, wanted

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray


def session(
    path: str | Path,
    threads: int | None = None,
    *,
    replace: Mapping[str, NDArray[Any]] | None = None,
    native: bool | None = None,
    config: Mapping[str, str] | None = None,
) -> onnxruntime.InferenceSession:
    """The file, ready to run. threads: None lets ONNX Runtime choose.

    native: run MoE layers by the native library (True), by their function bodies as stock ONNX Runtime does (False), or by the
    library where it was built and MOEIFY_NATIVE is not 0 (None).

    replace: other values for initializers, by name (`<layer>.k`, say). It turns constant folding off, as that would build the
    old values in: such a session is for comparing numbers, not for speed.

    config: further entries of ONNX Runtime's session configuration, by their keys.

    Raises InputError for a file that is missing, empty, cut off, no ONNX model, or without any operation, UsageError where the
    library is asked for and was not built.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "onnx", "running an ONNX file") from error
    path = model_file(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings are about its own optimisations
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    if wanted() if native is None else native:
        register(options)
    # Held until the session is built: ONNX Runtime reads them in place.
    held = {name: onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(value)) for name, value in (replace or {}).items()}
    for name, value in held.items():
        options.add_initializer(name, value)
    off = ["ConstantFolding"] if held else []
    try:
        built = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=off)
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "moeify:MoE(-1) is not a registered" in reason:
            raise InputError(
                f"{path}: its MoE layers have no bodies, it needs the native library (docs/native.md): register it, or export "
                "with another lowering"
            ) from error
        raise InputError(f"{path}: ONNX Runtime cannot load it: {reason}") from error
    if not built.get_outputs():
        raise InputError(f"{path}: holds no graph; export it again")
    return built


def model_file(path: str | Path) -> Path:
    """The absolute path of a file that may be an ONNX model. Raises InputError where it is missing, a folder, or empty."""
    path = Path(path).absolute()
    if path.is_dir():
        raise InputError(f"{path}: is a folder, not an ONNX file; name the .onnx file in it")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: is empty; export it again")
    return path
