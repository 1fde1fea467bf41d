"""What is wrong with an ONNX file, or with what is asked of it, is one line: what, where, what next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import moeify
from moeify.errors import InputError, MoeifyError, UsageError
from moeify.frontend.load_model import load_model
from onnx_files import HIDDEN, IN, NEURONS, OUT, REST, dense_onnx, ffn_weights, write

RELU = [*IN, ("Relu", "h", "a"), *OUT, *REST]


def used() -> dict[str, Any]:
    return {name: value for name, value in ffn_weights().items() if name in ("u", "ub", "d", "db")}


def external(path: Path) -> Path:
    """With its weights in weights.bin beside it."""
    model = onnx.load(dense_onnx(path))
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def _without_weights(path: Path) -> None:
    (external(path).parent / "weights.bin").unlink()


def _short_weights(path: Path) -> None:
    weights = external(path).parent / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-100])


def _weights_elsewhere(path: Path) -> None:
    content = external(path).read_bytes()
    path.write_bytes(content.replace(b"weights.bin", b"../etc/pass"))


def _quantised(path: Path) -> None:
    nodes = [("DequantizeLinear", "q s", "u"), *RELU]
    given = used() | {"q": np.ones((HIDDEN, NEURONS), np.int8), "s": np.float32(0.1)}
    del given["u"]
    write(path, nodes, given)


def _dynamically_quantised(path: Path) -> None:
    nodes = [(".DynamicQuantizeMatMul", "x q s z", "m"), ("Add", "ub m", "h"), ("Relu", "h", "a"), *OUT, *REST]
    given = used() | {"q": np.ones((HIDDEN, NEURONS), np.uint8), "s": np.float32(0.1), "z": np.uint8(128)}
    del given["u"]
    write(path, nodes, given)


def _half(path: Path) -> None:
    given = used() | {"v": np.ones((HIDDEN, NEURONS), np.float16)}
    write(path, [("Cast", "v", "u", {"to": TensorProto.FLOAT}), *RELU], {k: v for k, v in given.items() if k != "u"})


def _not_finite(path: Path) -> None:
    given = used()
    given["d"][3, 2] = np.nan
    write(path, RELU, given)


def _fixed_inside(path: Path) -> None:
    """Its input says free, a Reshape inside does not."""
    before = [("Reshape", "x s", "x3"), ("LayerNormalization", "x3 scale", "x4"), ("MatMul", "x4 u", "m")]
    given = used() | {"s": np.array([1, 5, HIDDEN]), "scale": np.ones(HIDDEN, np.float32)}
    write(path, [*before, *RELU[1:-1], ("Add", "x3 y", "out")], given)


def _strings(path: Path) -> None:
    dense_onnx(path, more=[helper.make_tensor_value_info("words", TensorProto.STRING, ["batch"])])


def _shapeless(path: Path) -> None:
    dense_onnx(path, more=[helper.make_tensor_value_info("extra", TensorProto.FLOAT, None)])


def _unknown_operator(path: Path) -> None:
    write(path, [*RELU, (".NobodyKnows", "out", "z")], used(), outputs=("z",))


#: caption, what is written, what the message says
FAULTS: list[tuple[str, Any, str]] = [
    ("a file of nothing", lambda p: p.write_bytes(b"\x08\x0e\x12\x01x:\x00"), "holds no graph; export it again"),
    ("garbage behind a good beginning", lambda p: _broken(p), "is no ONNX model, or is damaged"),
    ("a file cut off", lambda p: p.write_bytes(dense_onnx(p).read_bytes()[:400]), "is no ONNX model, or is damaged"),
    ("weights that are missing", _without_weights, r"its weights are in weights\.bin, which is missing; copy it"),
    ("weights that are cut off", _short_weights, r"weights\.bin: is too short for \w+ of dense\.onnx; copy it again"),
    ("weights outside of the folder", _weights_elsewhere, "names weights outside of its folder"),
    ("int8 weights", _quantised, r"its weights are integers \(DequantizeLinear\).*give the float32 file.*--precision int8"),
    ("int8 weights of ONNX Runtime", _dynamically_quantised, r"its weights are integers \(DynamicQuantizeMatMul\)"),
    ("weights in half precision", _half, "its weights are in half precision .*give the float32 file"),
    ("weights that are not finite", _not_finite, "its down weights hold NaN or infinite values"),
    ("sizes that cannot be made up", _fixed_inside, r"cannot run it on x \[2, 7, 8\], which were made up .*--example FILE"),
    ("an input of strings", _strings, "its input 'words' is of type string, which cannot be fed"),
    ("an input without a shape", _shapeless, "does not say the shape of its input 'extra': give one batch with --example"),
    ("an operator that nobody knows", _unknown_operator, "NobodyKnows"),
]  # fmt: skip


@pytest.mark.parametrize(("write_to", "message"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_a_fault_of_the_file_is_one_line(write_to: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "dense.onnx"
    path.parent.mkdir()
    write_to(path)
    with pytest.raises(InputError, match=message) as caught:
        moeify.convert(path, tmp_path / "out", experts=4)
    assert "\n" not in str(caught.value)
    assert "dense.onnx" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_file_without_a_feed_forward_network(tmp_path: Path) -> None:
    path = write(tmp_path / "dense.onnx", [("Relu", "x", "out")], {})
    assert moeify.inspect(path).rows == ()
    with pytest.raises(InputError, match="no feed-forward network that moeify knows: run moeify inspect on it"):
        moeify.convert(path, tmp_path / "out")


def test_a_converted_file_is_not_converted_again(tmp_path: Path) -> None:
    moeify.convert(dense_onnx(tmp_path / "dense.onnx"), tmp_path / "out", experts=4, top_k=2)
    with pytest.raises(InputError, match="is a converted model already: give the dense file"):
        moeify.convert(tmp_path / "out" / "model.onnx", tmp_path / "again", experts=4)
    assert moeify.inspect(tmp_path / "out" / "model.onnx").kind == "onnx"


def test_an_example_runs_what_cannot_be_made_up(tmp_path: Path) -> None:
    _fixed_inside(tmp_path / "dense.onnx")
    loaded = load_model(tmp_path / "dense.onnx", example=(torch.ones(1, 5, HIDDEN),))
    assert isinstance(loaded.example, dict)
    assert list(loaded.example) == ["x"]


@pytest.mark.parametrize(
    ("example", "message"),
    [({"y": torch.ones(1, 5, HIDDEN)}, "its inputs are x; the example holds y"),
     ((torch.ones(1), torch.ones(1)), "its inputs are x; the example holds 2 values"),
     ({"x": torch.ones(1, 5, HIDDEN + 1)}, r"ONNX Runtime cannot run it on x \[1, 5, 9\]: ")],
)  # fmt: skip
def test_an_example_that_does_not_fit(example: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_model(dense_onnx(tmp_path / "dense.onnx"), example=example)


def _broken(path: Path) -> Path:
    """What is told before the file is read: it begins as an ONNX file does."""
    path.write_bytes(b"\x08\x09\x12\x04here" + b"\xff" * 90)
    return path


EARLY: list[tuple[str, dict[str, Any], str]] = [
    ("an alignment", {"align": True, "calibrate": "x:y"}, "an alignment trains, and an ONNX file has no gradients"),
    ("a stock checkpoint", {"export": ("torch", "hf")}, "a stock checkpoint is made of a PyTorch model"),
    ("importance by gradients", {"recipe": "llama-moe", "calibrate": "x:y"}, "measure-importance needs gradients"),
    ("bf16", {"dtype": "bf16"}, "converted in fp32, not in bf16: leave out --dtype"),
    ("a factory", {"factory": "x:y"}, "factory: is for state_dicts"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), [each[1:] for each in EARLY], ids=[each[0] for each in EARLY])
def test_what_needs_the_torch_model_is_refused_first(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    if "align" in options:
        options = options | {"align": moeify.Alignment(minutes=1)}
    with pytest.raises(UsageError, match=message):
        moeify.convert(_broken(tmp_path / "dense.onnx"), tmp_path / "out", **options)


def test_text_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some words " * 40, "utf-8")
    with pytest.raises(MoeifyError, match="needs a tokenizer, and the model brings none"):
        moeify.convert(
            dense_onnx(tmp_path / "d.onnx"), tmp_path / "out", recipe="markers", experts=4, calibrate=tmp_path / "text.txt"
        )


def test_data_of_sizes_that_the_graph_does_not_take(tmp_path: Path) -> None:
    _fixed_inside(tmp_path / "dense.onnx")
    options: dict[str, Any] = {"example": (torch.ones(1, 5, HIDDEN),), "recipe": "markers", "experts": 4, "top_k": 2}
    with pytest.raises(InputError, match=r"ONNX Runtime cannot run the model on x \[1, 6, 8\]"):
        moeify.convert(tmp_path / "dense.onnx", tmp_path / "out", calibrate=[{"x": torch.ones(1, 6, HIDDEN)}], **options)
    assert not (tmp_path / "out").exists()


def test_the_folder_of_an_onnx_file_is_not_saved_again(tmp_path: Path) -> None:
    moeify.convert(dense_onnx(tmp_path / "dense.onnx"), tmp_path / "out", experts=4, top_k=2)
    with pytest.raises(UsageError, match="is of an ONNX file, which is not written a second time"):
        moeify.resave(moeify.load(tmp_path / "out"), tmp_path / "out", tmp_path / "again")
