"""A node of one of the operators with inputs that do not fit, and what the native kernel says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from moe_cases import VARIANTS, Case, random_case
from moe_node import body_shape, node_model, node_session, run_session

Arrays = dict[str, NDArray[Any]]


def everything() -> Case:
    """hidden 6, output 5, 4 experts, 18 rows, rank 2, x [2, 4, 6]."""
    return random_case(np.random.default_rng(0), VARIANTS["everything"])


def run_with(arrays: Arrays, case: Case | None = None) -> Any:
    """y of the node of `everything` or of another case with other arrays; those that are not there are left out of the node."""
    whole = case or everything()
    model = node_model(whole, body=False)
    for value in model.graph.inputs:
        value.shape = ir.Shape([None] * 3)
    node = next(node for node in model.graph if node.domain == "moeify")
    for i, name in enumerate(body_shape(whole).inputs):
        if name in ("x", "scores"):
            continue
        del model.graph.initializers[name]
        node.replace_input_with(i, None)
        if name in arrays:
            value = ir.val(name, const_value=ir.tensor(arrays[name], name=name))
            model.graph.initializers[name] = value
            node.replace_input_with(i, value)
    return run_session(node_session(model, native=True), replace(whole, inputs=arrays))


def refusal(arrays: Arrays, case: Case | None = None) -> str:
    with pytest.raises(Exception, match=r"moeify::Q?MoE") as caught:  # onnxruntime's exceptions have no common class
        run_with(arrays, case)
    return str(caught.value)


def absent(name: str) -> Callable[[Arrays], object]:
    return lambda arrays: arrays.pop(name)


def shaped(name: str, *shape: int) -> Callable[[Arrays], object]:
    return lambda arrays: arrays.update({name: np.ones(shape, dtype=arrays[name].dtype)})


def valued(name: str, value: Any) -> Callable[[Arrays], object]:
    return lambda arrays: arrays.update({name: np.asarray(value, dtype=arrays[name].dtype)})
