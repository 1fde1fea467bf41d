"""export_onnx refuses in one line, and keeps no file that computes something else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from torch import Tensor, nn

from moeify.errors import ConversionError, MoeifyError, OutputError, UsageError
from moeify.export.onnx.body import moe_function
from moeify.export.onnx.body_shape import BodyShape
from moeify.export.onnx.exporting import export_onnx
from moeify.export.onnx.forms import Form
from moeify.export.onnx.inspecting import onnx_layers
from moeify.export.onnx.lowering import bodied
from onnx_blocks import HIDDEN, moe_layer, normal


def _wrong_body(shape: BodyShape, opset: int, form: Form | None) -> ir.Function:
    function = moe_function(replace(shape, activation="relu"), opset, form)
    function.overload = shape.overload
    return function


def _wrong_choice(shape: BodyShape, opset: int, form: Form | None) -> ir.Function:
    """Right with all experts on: only the choice is that of other experts."""
    function = moe_function(shape, opset, form)
    for node in function:
        if node.op_type == "TopK":
            node.attributes["largest"] = ir.AttrInt64("largest", 0)
    return function


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (_wrong_body, r"all experts on, the example: ONNX Runtime is .* of the largest value away from the model, more than"),
        (_wrong_choice, r"the example: ONNX Runtime is .* of the largest value away from the model, more than 9e-05; nothing"),
    ],
    ids=["wrong activation", "wrong choice"],
)
def test_a_file_that_computes_something_else_is_not_kept(
    body: Callable[[BodyShape, int, Form | None], ir.Function], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodied, "moe_function", body)
    with pytest.raises(ConversionError, match=message):
        export_onnx(moe_layer(), (normal(16, HIDDEN),), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


class NoTensor(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "nothing"


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


FAULTS: list[tuple[str, nn.Module, Any, dict[str, Any], type[MoeifyError], str]] = [
    ("old opset", nn.Linear(2, 2), (normal(2, 2),), {"opset": 13}, UsageError, "opset is 13: choose from 20 to "),
    ("no tensor goes in", nn.Linear(2, 2), {}, {}, UsageError, "the example inputs hold no tensor"),
    ("too many inputs", nn.Linear(2, 2), (normal(2, 2), 1), {}, UsageError, "the example inputs do not fit Linear.forward: "),
    ("no tensor comes out", NoTensor(), (normal(2, 2),), {}, ConversionError, "the output of NoTensor holds no tensor"),
    ("a branch on data", Branching(), (normal(2, 2),), {}, ConversionError, "torch.onnx.export cannot translate the model: "),
    (
        "bfloat16",
        nn.Linear(2, 2).bfloat16(),
        (normal(2, 2).bfloat16(),),
        {},
        ConversionError,
        "ONNX Runtime's CPU cannot run a model in bfloat16; convert it first: model.float()",
    ),
]


@pytest.mark.parametrize(
    ("model", "example", "options", "error", "message"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS]
)
def test_faults(
    model: nn.Module, example: Any, options: dict[str, Any], error: type[MoeifyError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        export_onnx(model, example, tmp_path / "m.onnx", **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_replaced_only_when_forced(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        export_onnx(moe_layer(), (normal(6, HIDDEN),), path)
    assert path.read_text() == "mine"
    export_onnx(moe_layer(), (normal(6, HIDDEN),), path, force=True)
    assert onnx_layers(path)[0].sizes == (2, 3, 4, 5)
