"""What texts in an exported program may be: names, operators, sizes, structures; a closed list or grammar for each."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_PATH = re.compile(r"[\w./:+<>= -]*", re.ASCII)
_TEXT = re.compile(r"[\w.,>: -]*", re.ASCII)
_SYMBOL = re.compile(r"[a-z]+\d+", re.ASCII)
_OUTPUT_TYPE = re.compile(r"transformers\.modeling_outputs\.[A-Za-z]\w*", re.ASCII)
_TREES = (None, "builtins.list", "builtins.tuple", "builtins.dict", "collections.OrderedDict")

#: Operators that are no aten operators. The higher-order ones hold graphs, which are checked as well.
_OPERATORS = frozenset(
    {f"torch.ops.higher_order.{name}" for name in ("wrap_with_set_grad_enabled", "wrap_with_autocast")}
    | {f"torch.sym_{name}" for name in ("float", "int", "ite", "max", "min", "not", "sum")}
    | {f"math.{name}" for name in ("ceil", "floor", "sqrt", "trunc")}
    | {
        f"_operator.{name}"
        for name in (
            "add", "and_", "eq", "floordiv", "ge", "getitem", "gt", "le", "lt", "mod", "mul", "ne", "neg", "not_", "or_", "pos",
            "pow", "sub", "truediv",
        )
    }
)  # fmt: skip

#: Functions that sizes are made of: sympy's own, and those of torch.utils._sympy.functions.
_FUNCTIONS = frozenset(
    {
        "Add", "And", "CeilDiv", "CeilToInt", "CleanDiv", "Equality", "Eq", "Float", "FloatPow", "FloatTrueDiv", "FloorDiv",
        "FloorToInt", "Ge", "GreaterThan", "Gt", "Identity", "IntTrueDiv", "Integer", "Le", "LessThan", "Lt", "Max", "Min",
        "Mod", "ModularIndexing", "Mul", "Ne", "Not", "Or", "Pow", "PowByNatural", "PythonMod", "Rational", "RoundToInt",
        "StrictGreaterThan", "StrictLessThan", "Symbol", "ToFloat", "TruncToFloat", "TruncToInt", "Unequality", "Where",
        "ceiling", "floor",
    }
)  # fmt: skip
_SYNTAX = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop,
    ast.Compare, ast.cmpop,
)  # fmt: skip


class ForeignTextError(Exception):
    """The program says something that a plain one does not; the text says what."""


def check_path(text: str) -> None:
    """A path of a module or parameter, or any other short name: nothing that could end a text in Python's source."""
    _matches(_PATH, text, "a name")


def _name(text: str) -> None:
    if text:
        _matches(_NAME, text, "a name")


def _text(text: str) -> None:
    _matches(_TEXT, text, "a text")


def _matches(pattern: re.Pattern[str], text: str, what: str) -> None:
    if pattern.fullmatch(text) is None:
        raise ForeignTextError(f"{what} that is none ({text[:60]!r})")


def _operator(text: str) -> None:
    """aten's own operators on tensors, and those listed. `aten::from_file` maps a file, and may create it."""
    if text in _OPERATORS:
        return
    parts = text.split(".")
    if len(parts) == 5 and parts[:3] == ["torch", "ops", "aten"] and all(_NAME.fullmatch(part) for part in parts[3:]):
        name = f"aten::{parts[3]}" + ("" if parts[4] == "default" else f".{parts[4]}")
        if parts[3] != "from_file" and name in _aten():
            return
    raise ForeignTextError(f"the operator {text[:80]}, which is not one of torch's on tensors")


@cache
def _aten() -> frozenset[str]:
    """What torch's dispatcher knows: operators on tensors, and not those of TorchScript on texts and files."""
    return frozenset(torch._C._dispatch_get_all_op_names())


def _size(text: str) -> None:
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ForeignTextError(f"a size that is none ({text[:60]!r})") from error
    for node in ast.walk(tree):
        good = isinstance(node, _SYNTAX)
        if isinstance(node, ast.Call):
            good = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
        elif isinstance(node, ast.Name):
            good = node.id in _FUNCTIONS or _SYMBOL.fullmatch(node.id) is not None
        elif isinstance(node, ast.Constant):
            good = _SYMBOL.fullmatch(str(node.value)) is not None or type(node.value) in (bool, int, float)
        if not good:
            raise ForeignTextError(f"a size that is none ({text[:60]!r})")


def _tree(text: str) -> None:
    """A structure of inputs or outputs: lists, tuples, tables, and the outputs of transformers."""
    try:
        _, spec = json.loads(text)
        _check_tree(spec)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ForeignTextError(f"a structure that is none ({text[:60]!r})") from error


def _check_tree(spec: Mapping[str, Any]) -> None:
    kind, context = spec["type"], json.loads(spec["context"] or "null")
    if kind not in _TREES and not (isinstance(kind, str) and _OUTPUT_TYPE.fullmatch(kind)):
        raise ForeignTextError(f"inputs or outputs of the type {str(kind)[:80]}")
    for key in context or ():
        _matches(_NAME, key, "a name")
    for child in spec["children_spec"]:
        _check_tree(child)


#: Key in the JSON -> what its text must be; any other is a path.
RULES: Mapping[str, Callable[[str], None]] = {
    "target": _operator, "as_operator": _operator, "expr_str": _size, "in_spec": _tree, "out_spec": _tree, "name": _name,
    "as_name": _name, "forward_arg_names": _name, "as_string": _text, "as_strings": _text, "guards_code": lambda _: None,
}  # fmt: skip
