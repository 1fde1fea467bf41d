"""Which modules of the exported model an ONNX node belongs to, as exporters leave it in its name or its metadata."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

#: Where torch.onnx.export's newer exporter keeps the list of modules, the node itself last.
_METADATA = "pkg.torch.onnx.name_scopes"
#: Characters of that list, at most: a longer one is none.
_LONGEST = 10_000


def module_stack(node: ir.Node) -> dict[str, tuple[str, None]]:
    """As torch.export keeps it at its nodes: the paths of the modules around the node, from the outermost inwards."""
    return {path: (path, None) for path in _paths(node)}


def _paths(node: ir.Node) -> list[str]:
    scopes = node.metadata_props.get(_METADATA)
    if scopes is not None:
        if len(scopes) > _LONGEST:
            return []
        try:
            found = ast.literal_eval(scopes)
            return [str(path) for path in found[:-1]] if isinstance(found, list) else []
        except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two by nesting
            return []
    return _paths_of_name(node.name or "")


def _paths_of_name(name: str) -> list[str]:
    """`/encoder/layer.0/dense/MatMul`: of a child in a list both names stand in one part, `mlp`, `mlp.0` in a sequence that is
    called itself."""
    parts = name.split("/")
    if len(parts) < 3 or parts[0]:
        return []
    path, found = "", [""]
    for before, part in zip(parts[:-2], parts[1:-1]):
        inner = part.removeprefix(f"{before}.") if before else part
        path = f"{path}.{inner}" if path else inner
        found.append(path)
    return found
