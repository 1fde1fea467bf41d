"""Shapes and types of all values of an ONNX graph, found by running it once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moeify.errors import InputError
from moeify.frontend.onnx.model import OnnxModel
from moeify.frontend.onnx.segment import built, first_line, quiet_run


def all_values(model: OnnxModel, batch: Mapping[str, Tensor], where: str, *, given: bool) -> dict[str, Tensor]:
    """Every value of the main graph by its name, weights included, on the meta device.

    given: did the user give the batch? Raises InputError where ONNX Runtime cannot run the graph on it.
    """
    whole = model.graph.clone()
    made = [value for node in whole.graph for value in node.outputs if value.name and not node.op_type.startswith("Sequence")]
    whole.graph.outputs[:] = list(dict.fromkeys([*whole.graph.outputs, *made]))
    feeds = {name: tensor.numpy() for name, tensor in model.ports.complete(batch).items()}
    try:
        found = quiet_run(built(whole), feeds)
    except InputError as error:
        raise InputError(f"{where}: {str(error).partition('part.onnx: ')[2] or error}") from error
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        made_up = "" if given else ", which were made up from its declared shapes: give one batch with --example FILE"
        raise InputError(f"{where}: ONNX Runtime cannot run it on {sizes}{made_up}: {first_line(error)}") from error
    pairs = zip((str(value.name) for value in whole.graph.outputs), found)
    values = {name: _outline(np.asarray(value)) for name, value in pairs if not isinstance(value, list)}
    values |= {name: _outline(array) for name, array in feeds.items()}
    weights = model.graph.graph.initializers.items()
    return values | {name: _outline(value.const_value.numpy()) for name, value in weights if value.const_value is not None}


def _outline(array: np.ndarray[Any, Any]) -> Tensor:
    """Shape and type alone; a type that torch lacks counts as bytes."""
    try:
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    except TypeError:
        dtype = torch.uint8
    return torch.empty(array.shape, dtype=dtype, device="meta")
