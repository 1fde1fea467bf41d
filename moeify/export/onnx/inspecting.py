"""The MoE layers of an ONNX file."""

from __future__ import annotations

from pathlib import Path

from moeify.errors import InputError, MissingExtraError, MoeifyError
from moeify.export.onnx.attach import MoENode, moe_nodes, read_node
from moeify.runtime.session import model_file


def onnx_layers(path: str | Path) -> tuple[MoENode, ...]:
    """The `moeify::MoE` nodes of the file in their order; none for any other model.

    Raises InputError for a file that is missing, empty, damaged or no ONNX model, or whose MoE nodes are not as they should be.
    """
    try:
        import onnx_ir as ir
    except ImportError as error:
        raise MissingExtraError("onnx-ir", "onnx", "reading an ONNX file") from error
    path = model_file(path)  # absolute: with a bare name, onnx_ir would follow external data out of the folder
    try:
        model = ir.load(path)
        layers = tuple(read_node(node) for node in moe_nodes(model))
    except MoeifyError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # protobuf, onnx_ir and missing external data each raise classes of their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: is no ONNX model, or is damaged: {reason}") from error
    if not len(model.graph):
        raise InputError(f"{path}: holds no graph; export it again")
    return layers
