"""The program of a torch.export archive, as text: held to what a plain program says before torch reads it.

torch.export.load turns texts of this JSON into running things: names of operators are looked up in torch, where
`torch.os.system` is a name like any other; sizes are evaluated (sympy.sympify); structures of inputs may import modules; and
names of values become names in generated source. So every text is checked by where it stands, and what is not known is refused.
Read off torch 2.13: torch/_export/serde/serialize.py, torch/fx/graph.py, torch/utils/_pytree.py.
"""

from __future__ import annotations

from typing import Any

from moeify.frontend.exported_rules import RULES, ForeignTextError, check_path

__all__ = ["ForeignTextError", "check_names", "check_program"]

#: Holders of a field `metadata`, which tells where something came from: it is never run, nor put into what is generated.
_WITH_METADATA = ("nodes", "graph_module")


def check_program(found: Any) -> None:
    """Raises ForeignTextError for a program (parsed JSON) that holds anything but known operators and plain names."""
    _walk(found, "")


def check_names(found: Any) -> None:
    """Raises ForeignTextError for a table of weights whose names could not be those of parameters."""
    _walk(found, "config")


def _walk(found: Any, key: str) -> None:
    if isinstance(found, dict):
        if key in ("as_custom_obj", "custom_obj"):
            raise ForeignTextError("an object of a class of its own")
        for name, value in found.items():
            check_path(name)
            if name != "metadata" or key not in _WITH_METADATA:  # a value may be called metadata, too
                _walk(value, name)
    elif isinstance(found, list):
        for item in found:
            _walk(item, key)
    elif isinstance(found, str):
        RULES.get(key, check_path)(found)
