"""Tensors of an ONNX graph that lie in files beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from moeify.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir


def files_beside(model: ir.Model, path: Path) -> dict[str, Path]:
    """The files that tensors of all graphs, functions and attributes lie in, by their paths relative to the graph's folder.

    Raises InputError for a tensor whose file is missing, too short, or outside of that folder.
    """
    found = {}
    for tensor, _ in _external(model):
        _check(tensor, path)
        found[PurePath(os.path.normpath(tensor.location)).as_posix()] = Path(tensor.path)
    return dict(sorted(found.items()))


def hold_external(model: ir.Model) -> None:
    """In place: tensors over the same mapped memory. External ones are unmapped when the graph, or a part of it, is written."""
    import onnx_ir as ir

    for tensor, put in list(_external(model)):
        put(ir.Tensor(tensor.numpy(), dtype=tensor.dtype, shape=tensor.shape, name=tensor.name))


def _check(tensor: ir.ExternalTensor, path: Path) -> None:
    place = Path(tensor.path)
    if not place.resolve().is_relative_to(path.parent.resolve()):
        raise InputError(f"{path}: names weights outside of its folder ({tensor.location}); keep them beside the file")
    if not place.is_file():
        raise InputError(f"{path}: its weights are in {tensor.location}, which is missing; copy it beside the file")
    if place.stat().st_size < (tensor.offset or 0) + tensor.nbytes:
        raise InputError(f"{place}: is too short for {tensor.name or 'a constant'} of {path.name}; copy it again")


def _external(model: ir.Model) -> Iterator[tuple[ir.ExternalTensor, Callable[[Any], None]]]:
    """Each with what puts another in its place."""
    import onnx_ir as ir

    functions = list(model.functions.values())
    for part in chain(model.graphs(), *(function.subgraphs() for function in functions)):
        for value in part.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value, partial(setattr, value, "const_value")
    for node in chain(model.graph.all_nodes(), *(function.all_nodes() for function in functions)):
        for name, attribute in node.attributes.items():
            if not attribute.is_ref() and isinstance(attribute.value, ir.ExternalTensor):
                yield attribute.value, partial(_put, node, name)


def _put(node: ir.Node, name: str, tensor: Any) -> None:
    import onnx_ir as ir

    node.attributes[name] = ir.AttrTensor(name, tensor)
