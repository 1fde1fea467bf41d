"""Sessions on files that cannot be run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from moeify.errors import InputError
from moeify.export.onnx.inspecting import onnx_layers
from moeify.runtime.session import session


def model(path: Path) -> None:
    """y = x + w, w [64]."""
    x = ir.val("x", ir.DataType.FLOAT, ["batch", 64])
    w = ir.val("w", const_value=ir.tensor(np.ones(64, dtype=np.float32), name="w"))
    node = ir.node("Add", [x, w])
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", x.type, x.shape
    ir.save(ir.Model(ir.Graph([x], [y], nodes=[node], initializers=[w], opset_imports={"": 20}, name="g"), ir_version=10), path)


def no_graph(path: Path) -> None:
    ir.save(ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 20}, name="g"), ir_version=10), path)


def cut_off(path: Path) -> None:
    model(path)
    path.write_bytes(path.read_bytes()[:200])


def test_a_session_runs_the_file_and_takes_other_initializers(tmp_path: Path) -> None:
    model(tmp_path / "m.onnx")
    x = np.zeros((2, 64), dtype=np.float32)
    assert session(str(tmp_path / "m.onnx"), threads=1).run(None, {"x": x})[0].tolist() == np.ones((2, 64)).tolist()
    other = session(tmp_path / "m.onnx", replace={"w": np.full(64, 3, dtype=np.float32)})
    assert other.run(None, {"x": x})[0].max() == 3
    assert onnx_layers(tmp_path / "m.onnx") == ()


FAULTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing": (lambda path: None, "no such file", "no such file"),
    "a folder": (lambda path: path.mkdir(), "is a folder, not an ONNX file", "is a folder, not an ONNX file"),
    "empty": (lambda path: path.touch(), "is empty", "is empty"),
    "garbage": (
        lambda path: path.write_bytes(b"\x00\x01\x02" * 50),
        "ONNX Runtime cannot load it: ",
        "is no ONNX model, or is damaged: ",
    ),
    "cut off": (cut_off, "ONNX Runtime cannot load it: ", "is no ONNX model, or is damaged: "),
    "no graph": (no_graph, "", "holds no graph; export it again"),
}


@pytest.mark.parametrize("caption", FAULTS)
def test_files_that_cannot_be_run(caption: str, tmp_path: Path) -> None:
    make, at_session, at_inspection = FAULTS[caption]
    path = tmp_path / "m.onnx"
    make(path)
    for read, message in ((session, at_session), (onnx_layers, at_inspection)):
        with pytest.raises(InputError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: {message}")
        assert "\n" not in str(caught.value)
