"""An ONNX file => a graph in the form that the rest works on, or one clear error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from moeify.errors import InputError, MissingExtraError, MoeifyError
from moeify.frontend.onnx.external import files_beside, hold_external
from moeify.frontend.onnx.quantised import quantised_reason
from moeify.runtime.session import model_file

if TYPE_CHECKING:
    import onnx_ir as ir

#: The opset that bodies of MoE layers are written in; older files are raised to it.
OPSET = 20
#: Where a graph keeps the opset that it was raised from.
RAISED = "moeify_raised_from"
#: Where it keeps the files beside it that hold its tensors, by their paths relative to its folder.
BESIDE = "moeify_beside"
#: The domain of our own operator: its functions stay.
DOMAIN = "moeify"


def read_onnx(path: Path) -> ir.Model:
    """The graph: opset 20 or later, functions inlined, constants as initializers, nodes in an order in which they can run.

    Raises InputError for what is no ONNX model, is damaged, empty or quantised, lacks its external data, or has an opset that
    cannot be raised; MissingExtraError without the packages.
    """
    try:
        import onnx_ir as ir
        import onnxscript  # noqa: F401 - raises opsets
    except ImportError as error:
        raise MissingExtraError(error.name or "onnx-ir", "onnx", "reading an ONNX file") from error
    path = model_file(path)  # absolute: with a bare name, onnx_ir would follow external data out of the folder
    try:
        model = ir.load(path)
        _check(model, path)
        _settled(model)
        _check_floats(model, path)  # what stood in functions and constants too
        hold_external(model)
        model.graph.sort()
        list(ir.traversal.RecursiveGraphIterator(model.graph))
    except MoeifyError:
        raise
    except Exception as error:  # protobuf and onnx_ir each raise classes of their own
        reason = " ".join((str(error).strip().splitlines() or [type(error).__name__])[0].split())
        raise InputError(f"{path}: is no ONNX model, or is damaged: {reason}") from error
    if (opset := model.opset_imports.get("", 0)) < OPSET:
        raise InputError(
            f"{path}: its opset {opset} cannot be raised to {OPSET}: export the model again with opset_version={OPSET}"
        )
    return model


def _check(model: ir.Model, path: Path) -> None:
    if not len(model.graph):
        raise InputError(f"{path}: holds no graph; export it again")
    model.meta[BESIDE] = files_beside(model, path)
    _check_floats(model, path)


def _check_floats(model: ir.Model, path: Path) -> None:
    if (reason := quantised_reason(model)) is not None:
        raise InputError(f"{path}: {reason}")


def _settled(model: ir.Model) -> None:
    """In place. Of what is left out nothing is an output."""
    from onnx_ir import passes
    from onnx_ir.passes import common

    with _quiet():
        common.InlinePass(criteria=lambda function: function.domain != DOMAIN)(model)
        if model.opset_imports.get("", 0) < OPSET:
            from onnxscript.version_converter import convert_version

            model.meta[RAISED] = model.opset_imports.get("", 0)
            convert_version(model, OPSET, fallback=True)
        passes.Sequential(
            common.RemoveInitializersFromInputsPass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.RemoveUnusedNodesPass(),
        )(model)


@contextmanager
def _quiet() -> Iterator[None]:
    """The converter logs which of its ways it takes."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
