"""Dense ONNX files for tests: a small torch model as both exporters write it, and graphs written by hand."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

Array = NDArray[Any]
HIDDEN, NEURONS = 8, 32
INT8 = TensorProto.INT8


class Gated(nn.Module):
    """SiLU-gated, without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(HIDDEN, NEURONS, bias=False) for _ in range(2))
        self.down = nn.Linear(NEURONS, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return y


class Blocks(nn.Module):
    """x [batch, sequence, hidden] through four blocks, each with a normalisation and another feed-forward network."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()

        def plain(act: nn.Module, bias: bool = True) -> nn.Module:
            return nn.Sequential(nn.Linear(HIDDEN, NEURONS, bias=bias), act, nn.Linear(NEURONS, HIDDEN, bias=bias))

        self.norm = nn.LayerNorm(HIDDEN)
        self.relu, self.gelu = plain(nn.ReLU(), bias=False), plain(nn.GELU())
        self.tanh, self.gated = plain(nn.GELU(approximate="tanh")), Gated()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)

    def forward(self, x: Tensor) -> Tensor:
        for ffn in (self.relu, self.gelu, self.tanh, self.gated):
            x = x + ffn(self.norm(x))
        return x


def inputs(rows: int = 3, length: int = 5, seed: int = 1) -> Tensor:
    return torch.randn(rows, length, HIDDEN, generator=torch.Generator().manual_seed(seed))


def export(model: nn.Module, path: Path, *, dynamo: bool, opset: int, external: bool = False) -> Path:
    """As torch.onnx.export writes it, batch and sequence free."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter says that it is old
        free: dict[str, Any] = (
            {"dynamic_shapes": ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},), "external_data": external}
            if dynamo
            else {"dynamic_axes": {"x": {0: "batch", 1: "sequence"}}}
        )
        torch.onnx.export(
            model.eval(), (inputs(),), path, input_names=["x"], output_names=["y"], dynamo=dynamo, opset_version=opset,
            verbose=False, **free,
        )  # fmt: skip
    return path


def weights(*shape: int, seed: int) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.3).astype(np.float32)


def write(
    path: Path,
    nodes: Sequence[tuple[Any, ...]],
    tensors: dict[str, Array],
    *,
    x: tuple[Any, ...] | None = ("batch", "sequence", HIDDEN),
    outputs: Sequence[str] = ("out",),
    opset: int = 20,
    more: Sequence[Any] = (),
) -> Path:
    """A graph of x (None: of the inputs in `more` alone).

    nodes: (operator, inputs, outputs, attributes), the names of values between spaces; an operator of ONNX Runtime's own begins
    with a dot.
    """
    made = [
        helper.make_node(
            op.lstrip("."), given.split(), names.split(), domain="com.microsoft" if op[0] == "." else "", **dict(*rest)
        )
        for op, given, names, *rest in nodes
    ]
    graph = helper.make_graph(
        made,
        "written",
        [*([] if x is None else [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)]), *more],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9), path)
    return path


def ffn_weights() -> dict[str, Array]:
    """u, g [hidden, neurons], d [neurons, hidden], their biases, and single values."""
    single = {"half": 0.5, "one": 1.0, "root": 2**0.5, "slope": (2 / np.pi) ** 0.5, "cube": 0.044715, "three": 3.0}
    return {
        "u": weights(HIDDEN, NEURONS, seed=1), "g": weights(HIDDEN, NEURONS, seed=2), "d": weights(NEURONS, HIDDEN, seed=3),
        "ub": weights(NEURONS, seed=4), "db": weights(HIDDEN, seed=5),
        **{name: np.array(value, np.float32) for name, value in single.items()},
    }  # fmt: skip


ERF = [("Div", "h root", "e1"), ("Erf", "e1", "e2"), ("Add", "e2 one", "e3"), ("Mul", "h e3", "e4"), ("Mul", "e4 half", "a")]
TANH = [
    ("Pow", "h three", "t1"), ("Mul", "cube t1", "t2"), ("Add", "h t2", "t3"), ("Mul", "t3 slope", "t4"), ("Tanh", "t4", "t5"),
    ("Add", "one t5", "t6"), ("Mul", "h half", "t7"), ("Mul", "t7 t6", "a"),
]  # fmt: skip
IN, OUT = [("MatMul", "x u", "m"), ("Add", "ub m", "h")], [("MatMul", "a d", "n"), ("Add", "n db", "y")]
REST = [("Add", "x y", "out")]


def dense_onnx(path: Path, **options: Any) -> Path:
    """One ReLU feed-forward network with its residual."""
    given = {name: value for name, value in ffn_weights().items() if name in ("u", "ub", "d", "db")}
    return write(path, [*IN, ("Relu", "h", "a"), *OUT, *REST], given, **options)
