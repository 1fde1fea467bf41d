"""Folds constants and drops what nothing uses: the part of onnxscript's optimizer that ONNX Runtime does not repeat at load.

Its rewrite rules are left out: they take most of an export's time (every rule is tried on every node), and ONNX Runtime has
rules of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeify.export.onnx.fusable import divide_by_roots

if TYPE_CHECKING:
    import onnx_ir as ir


def simplify(model: ir.Model) -> None:
    """In place."""
    import onnxscript.optimizer
    from onnx_ir import passes
    from onnx_ir.passes import common

    common.InlinePass()(model)
    onnxscript.optimizer.fold_constants(model)
    divide_by_roots(model)
    tidy = (
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=16),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
    )
    passes.Sequential(*tidy)(model)
