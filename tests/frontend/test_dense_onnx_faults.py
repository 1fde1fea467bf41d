"""What is wrong with an ONNX file, or with what is asked of it, is one line: what, where, what next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import moeify
from moeify.errors import InputError, MoeifyError, UsageError
from moeify.frontend.load_model import load_model
from moeify.frontend.recorded_source import recorded_source
from moeify.runtime.session import session
from moeify.training.align import align
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


def _half_constant(path: Path) -> None:
    """In a Constant node, as some exporters leave weights."""
    half = numpy_helper.from_array(np.ones((HIDDEN, NEURONS), np.float16), "v")
    nodes = [("Constant", "", "v", {"value": half}), ("Cast", "v", "u", {"to": TensorProto.FLOAT}), *RELU]
    write(path, nodes, {name: value for name, value in used().items() if name != "u"})


def _half_kernel(path: Path) -> None:
    nodes = [("Cast", "k", "k32", {"to": TensorProto.FLOAT}), ("Conv", "x k32", "out")]
    write(path, nodes, {"k": np.ones((HIDDEN, HIDDEN, 1), np.float16)}, x=("batch", HIDDEN, 3))


def _quantised_function(path: Path) -> None:
    """The operator stands in a function alone."""
    node = helper.make_node(
        "MatMulNBits", ["x", "q", "s"], ["m"], domain="com.microsoft", K=HIDDEN, N=NEURONS, bits=4, block_size=16
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("mine", 1)]
    function = helper.make_function("mine", "Product", ["x", "q", "s"], ["m"], [node], imports)
    q, s = np.ones((NEURONS, 1, 8), np.uint8), np.ones(NEURONS, np.float32)
    given = {name: value for name, value in used().items() if name != "u"} | {"q": q, "s": s}
    model = onnx.load(write(path, [(".Product", "x q s", "m"), *RELU[1:]], given))
    model.graph.node[0].domain = "mine"
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    onnx.save(model, path)


def _elsewhere(name: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[HIDDEN], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../elsewhere.bin")
    return tensor


def _constant_elsewhere(path: Path) -> None:
    write(path, [("Constant", "", "c", {"value": _elsewhere("c")}), *RELU[:-1], ("Add", "y c", "out")], used())


def _branch_elsewhere(path: Path) -> None:
    def branch(name: str) -> Any:
        made = helper.make_node("Add", ["y", f"{name}c"], [f"{name}b"])
        out = helper.make_tensor_value_info(f"{name}b", TensorProto.FLOAT, None)
        return helper.make_graph([made], name, [], [out], [_elsewhere(f"{name}c")])

    choice = ("If", "yes", "out", {"then_branch": branch("t"), "else_branch": branch("e")})
    write(path, [*RELU[:-1], choice], used() | {"yes": np.array(True)})


def _double(path: Path) -> None:
    given = {name: value.astype(np.float64) for name, value in used().items()}
    write(path, [("Cast", "x0", "x", {"to": TensorProto.DOUBLE}), *RELU[:-1], ("Cast", "y", "out", {"to": TensorProto.FLOAT})],
          given, x=None, more=[helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["batch", HIDDEN])])  # fmt: skip


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
    ("weights in half precision in a constant", _half_constant, "its weights are in half precision .*give the float32 file"),
    ("a kernel in half precision", _half_kernel, "its weights are in half precision .*give the float32 file"),
    ("int4 weights inside a function", _quantised_function, r"its weights are integers \(MatMulNBits\)"),
    ("a constant outside of the folder", _constant_elsewhere, r"names weights outside of its folder \(\.\./elsewhere\.bin\)"),
    ("a branch's weights outside of the folder", _branch_elsewhere, r"outside of its folder \(\.\./elsewhere\.bin\)"),
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


def test_float64_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    _double(tmp_path / "double.onnx")
    with pytest.raises(InputError, match=r"its weights are float64, .*: export the model in float32"):
        moeify.convert(tmp_path / "double.onnx", tmp_path / "out", experts=4)
    assert moeify.inspect(tmp_path / "double.onnx").refusals


@pytest.mark.parametrize("scopes", ["-" * 200_000 + "1", "-" * 9_000 + "1", "[" * 900 + "]" * 900, "no list"])
def test_what_claims_to_be_a_list_of_modules_is_not_believed(scopes: str, tmp_path: Path) -> None:
    model = onnx.load(dense_onnx(tmp_path / "dense.onnx"))
    for node in model.graph.node:
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    onnx.save(model, tmp_path / "dense.onnx")
    assert len(moeify.inspect(tmp_path / "dense.onnx").rows) == 1


def test_small_weights_in_a_file_beside_it(tmp_path: Path) -> None:
    """The writer of graphs takes those into the message."""
    path = external(tmp_path / "dense.onnx")
    x = torch.randn(2, 3, HIDDEN, generator=torch.Generator().manual_seed(1))
    found = load_model(path).model(x=x)["out"]
    torch.testing.assert_close(found, torch.from_numpy(session(path).run(None, {"x": x.numpy()})[0]), rtol=0, atol=1e-6)
    done = moeify.convert(path, tmp_path / "out", experts=4, top_k=4)
    torch.testing.assert_close(done.model(x=x)["out"], found, rtol=1e-5, atol=1e-5)


def test_an_external_constant_is_held_too(tmp_path: Path) -> None:
    np.arange(HIDDEN, dtype=np.float32).tofile(tmp_path / "elsewhere.bin")
    tensor = _elsewhere("c")
    tensor.external_data[0].value = "elsewhere.bin"
    nodes = [("Constant", "", "c", {"value": tensor}), *RELU[:-1], ("Add", "y c", "out")]
    loaded = load_model(write(tmp_path / "dense.onnx", nodes, used()))
    assert set(loaded.source.digests) == {"dense.onnx", "elsewhere.bin"}
    assert isinstance(loaded.example, dict)
    assert loaded.model(**loaded.example)["out"].isfinite().all()


def test_weights_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    model = onnx.load(external(tmp_path / "dense.onnx"), load_external_data=False)
    for number, tensor in enumerate(model.graph.initializer):
        place = tmp_path / ("a", "b")[number % 2]
        place.mkdir(exist_ok=True)
        (place / "w.bin").write_bytes((tmp_path / "weights.bin").read_bytes())
        next(entry for entry in tensor.external_data if entry.key == "location").value = f"{place.name}/w.bin"
    onnx.save(model, tmp_path / "dense.onnx")
    source = load_model(tmp_path / "dense.onnx").source
    assert set(source.digests) == {"dense.onnx", "a/w.bin", "b/w.bin"}
    assert recorded_source(source, [tmp_path]) == tmp_path / "dense.onnx"
    changed = bytearray((tmp_path / "a" / "w.bin").read_bytes())
    changed[0] ^= 1
    (tmp_path / "a" / "w.bin").write_bytes(bytes(changed))
    with pytest.raises(InputError, match=r"a/w\.bin: is not what the folder was made from \(sha256\)"):
        recorded_source(source, [tmp_path])


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


def test_what_needs_gradients_or_modules_is_refused_of_the_folder_of_an_onnx_file(tmp_path: Path) -> None:
    moeify.convert(dense_onnx(tmp_path / "dense.onnx"), tmp_path / "out", experts=4, top_k=2)
    model = moeify.load(tmp_path / "out")
    with pytest.raises(UsageError, match="is of an ONNX file, which is not written a second time"):
        moeify.resave(model, tmp_path / "out", tmp_path / "again")
    for source, named in ((tmp_path / "out", "out"), (model, "the model")):
        with pytest.raises(
            UsageError, match=f"{named}.* is of an ONNX file, whose graph is not made dense again: take the dense"
        ):
            moeify.to_dense(source, tmp_path / "again")
    with pytest.raises(InputError, match="is of an ONNX file, which runs in float32, not in bfloat16: leave out dtype"):
        moeify.load(tmp_path / "out", dtype="bf16")
    with pytest.raises(UsageError, match="OnnxModel cannot be trained: it is an ONNX graph, which has no gradients"):
        moeify.set_training(model, load_balance=0.01)
    with pytest.raises(UsageError, match="OnnxModel cannot be trained"):
        align(model, model, [])
