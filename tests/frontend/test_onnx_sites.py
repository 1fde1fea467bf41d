"""Feed-forward networks in ONNX graphs, as exporters and optimisers write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from moeify.frontend.load_model import load_model
from moeify.frontend.onnx.model import OnnxModel
from moeify.ir.feed_forward import FeedForward
from moeify.runtime.session import session
from onnx_files import ERF, HIDDEN, IN, NEURONS, OUT, REST, TANH, ffn_weights, weights, write


def opened(path: Path) -> OnnxModel:
    model = load_model(path).model
    assert isinstance(model, OnnxModel)
    return model


def only_site(model: OnnxModel) -> FeedForward:
    assert model.found is not None
    assert not model.found.refusals
    (site,) = model.found.sites
    return site


def act(op: str, **attributes: Any) -> list[tuple[Any, ...]]:
    return [(op, "h", "a", attributes)]


FORMS: list[tuple[str, list[tuple[Any, ...]], str, bool]] = [
    ("MatMul and Add around a Relu", [*IN, *act("Relu"), *OUT], "relu", False),
    ("an erf GELU written out", [*IN, *ERF, *OUT], "gelu", False),
    ("a tanh GELU written out", [*IN, *TANH, *OUT], "gelu-tanh", False),
    ("the operator Gelu", [*IN, *act("Gelu"), *OUT], "gelu", False),
    ("the operator Gelu, tanh form", [*IN, *act("Gelu", approximate="tanh"), *OUT], "gelu-tanh", False),
    ("Gelu of ONNX Runtime", [*IN, *act(".Gelu"), *OUT], "gelu", False),
    ("QuickGelu", [*IN, *act(".QuickGelu", alpha=1.702), *OUT], "quick-gelu", False),
    ("QuickGelu that is SiLU", [*IN, *act(".QuickGelu", alpha=1.0), *OUT], "silu", False),
    ("FastGelu with the bias in it", [("MatMul", "x u", "m"), (".FastGelu", "m ub", "a"), *OUT], "gelu-tanh", False),
    ("BiasGelu", [("MatMul", "x u", "m"), (".BiasGelu", "m ub", "a"), *OUT], "gelu", False),
    ("Mish", [*IN, *act("Mish"), *OUT], "mish", False),
    ("HardSigmoid of torch", [*IN, *act("HardSigmoid", alpha=1 / 6, beta=0.5), *OUT], "hard-sigmoid", False),
    ("Clip as ReLU6", [*IN, ("Clip", "h zero six", "a"), *OUT], "relu6", False),
    ("Sigmoid times itself", [*IN, ("Sigmoid", "h", "s"), ("Mul", "h s", "a"), *OUT], "silu", False),
    ("a transposed weight", [("Transpose", "ut", "u2"), ("MatMul", "x u2", "m"), ("Add", "m ub", "h"), *act("Relu"), *OUT],
     "relu", False),
    ("a gate", [("MatMul", "x g", "q"), ("Sigmoid", "q", "s"), ("Mul", "q s", "r"), ("MatMul", "x u", "h"),
                ("Mul", "r h", "a"), *OUT], "silu", True),
    ("a fused gate, split", [("MatMul", "x gu", "b"), ("Split", "b", "q h", {"axis": -1, "num_outputs": 2}),
                             ("Relu", "q", "r"), ("Mul", "r h", "a"), *OUT], "relu", True),
    ("a fused gate, sliced", [("MatMul", "x gu", "b"), ("Slice", "b i0 i1 last", "q"), ("Slice", "b i1 i2 last", "h"),
                              ("Relu", "q", "r"), ("Mul", "r h", "a"), *OUT], "relu", True),
    ("Gemm on flat rows, sizes read from x",
     [("Shape", "x", "sx"), ("Reshape", "x flat", "x2"), ("Gemm", "x2 u ub", "h"), *act("Relu"), ("Gemm", "a d db", "y2"),
      ("Reshape", "y2 sx", "y")], "relu", False),
    ("Gemm with transposed weights", [("Reshape", "x flat", "x2"), ("Gemm", "x2 ut ub", "h", {"transB": 1}), *act("Relu"),
                                      ("Gemm", "a dt db", "y2", {"transB": 1}), ("Reshape", "y2 whole", "y")], "relu", False),
    ("sizes read from the hidden value", [*IN, *act("Relu"), ("Shape", "a", "sa"), ("Reshape", "a sa", "a2"),
                                          ("MatMul", "a2 d", "n"), ("Add", "n db", "y")], "relu", False),
    ("a bias with leading dims", [("MatMul", "x u", "m"), ("Add", "m ub3", "h"), *act("Relu"), ("MatMul", "a d", "n"),
                                  ("Add", "n db2", "y")], "relu", False),
    ("Sum for Add", [("MatMul", "x u", "m"), ("Sum", "m ub", "h"), *act("Relu"), ("MatMul", "a d", "n"), ("Sum", "n db", "y")],
     "relu", False),
    ("Gemm with a row as its bias", [("Reshape", "x flat", "x2"), ("Gemm", "x2 u ub2", "h"), *act("Relu"),
                                     ("Gemm", "a d db2", "y2"), ("Reshape", "y2 whole", "y")], "relu", False),
    ("Gemm with 0 as its bias", [("Reshape", "x flat", "x2"), ("Gemm", "x2 u none", "h"), *act("Relu"),
                                 ("Gemm", "a d db", "y2"), ("Reshape", "y2 whole", "y")], "relu", False),
    ("no bias at all", [("MatMul", "x u", "h"), *act("Relu"), ("MatMul", "a d", "y")], "relu", False),
]  # fmt: skip


def tensors() -> dict[str, Any]:
    found = ffn_weights()
    more = {
        "ut": found["u"].T.copy(), "dt": found["d"].T.copy(), "gu": np.concatenate([found["g"], found["u"]], axis=1),
        "ub2": found["ub"][None], "ub3": found["ub"][None, None], "db2": found["db"][None], "none": np.zeros(1, np.float32),
        "number": np.full(1, 0.5, np.float32),
        "zero": np.float32(0), "six": np.float32(6), "i0": np.array([0]), "i1": np.array([NEURONS]),
        "i2": np.array([2 * NEURONS]), "last": np.array([-1]),
        "flat": np.array([-1, HIDDEN]), "whole": np.array([2, 7, HIDDEN]),
    }  # fmt: skip
    return found | more


def used(nodes: list[tuple[Any, ...]]) -> dict[str, Any]:
    """The tensors that nodes read: an unused one would be nobody's."""
    names = {name for node in nodes for name in node[1].split()}
    return {name: value for name, value in tensors().items() if name in names}


@pytest.mark.parametrize(("caption", "nodes", "activation", "gated"), FORMS, ids=[form[0] for form in FORMS])
def test_a_form_is_found_and_computes_what_the_file_computes(
    tmp_path: Path, caption: str, nodes: list[tuple[Any, ...]], activation: str, gated: bool
) -> None:
    path = write(tmp_path / "dense.onnx", [*nodes, *REST], used(nodes))
    loaded = load_model(path)
    model = loaded.model
    assert isinstance(model, OnnxModel)
    site = only_site(model)
    assert (site.activation, site.gated, site.hidden, site.neurons) == (activation, gated, HIDDEN, NEURONS), caption
    assert isinstance(loaded.example, dict)
    x = loaded.example["x"]
    expected = torch.from_numpy(session(path).run(None, {"x": x.numpy()})[0])
    torch.testing.assert_close(x + site.forward(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(x=x)["out"], expected, rtol=0, atol=1e-6)


FLAT = [("Reshape", "x flat", "x2")]
BACK = [("Gemm", "a d db", "y2"), ("Reshape", "y2 whole", "y")]
REFUSED: list[tuple[str, list[tuple[Any, ...]], list[str], str]] = [
    ("the hidden value is an output", [*IN, *act("Relu"), *OUT], ["out", "a"], "hidden values are used elsewhere"),
    ("the hidden value is read again", [*IN, *act("Relu"), *OUT, ("MatMul", "a d2", "z")], ["out", "z"], "used elsewhere"),
    ("a normalisation inside", [*IN, *act("Relu"), ("LayerNormalization", "a ns", "a2"), ("MatMul", "a2 d", "y")], ["out"],
     "normalisation"),
    ("tied weights", [*IN, *act("Relu"), *OUT, ("Gather", "d row", "z")], ["out", "z"], "tied"),
    ("a Gemm that scales its product", [*FLAT, ("Gemm", "x2 u", "h", {"alpha": 0.5}), *act("Gelu"), *BACK], ["out"],
     "not in the table"),
    ("a Gemm that scales its bias", [*FLAT, ("Gemm", "x2 u ub", "h", {"beta": 0.5}), *act("Relu"), *BACK], ["out"], "vector"),
    ("a Gemm that adds one number", [*FLAT, ("Gemm", "x2 u number", "h"), *act("Gelu"), *BACK], ["out"], "not in the table"),
    ("a second Gemm that scales", [*FLAT, ("Gemm", "x2 u ub", "h"), *act("Relu"), ("Gemm", "a d db", "y2", {"alpha": 0.5}),
                                   ("Reshape", "y2 whole", "y")], ["out"], "no value of the graph"),
    ("an unknown activation", [*IN, ("Sin", "h", "s"), ("Relu", "s", "a"), *OUT], ["out"], ""),
]  # fmt: skip


@pytest.mark.parametrize(("caption", "nodes", "outputs", "reason"), REFUSED, ids=[each[0] for each in REFUSED])
def test_what_cannot_be_taken_out_is_left_alone(
    tmp_path: Path, caption: str, nodes: list[tuple[Any, ...]], outputs: list[str], reason: str
) -> None:
    more = {"ns": np.ones(NEURONS, np.float32), "d2": weights(NEURONS, 3, seed=9), "row": np.array([0])}
    names = {name for node in nodes for name in node[1].split()}
    given = used(nodes) | {name: value for name, value in more.items() if name in names}
    model = opened(write(tmp_path / "dense.onnx", [*nodes, *REST], given, outputs=outputs))
    assert model.found is not None
    assert not model.found.sites, caption
    assert (not reason and not model.found.refusals) or reason in model.found.refusals[0].reason


def test_one_network_called_twice_is_one_site(tmp_path: Path) -> None:
    again = [
        ("Add", "x y", "x1"),
        ("MatMul", "x1 u", "m1"),
        ("Add", "m1 ub", "h1"),
        ("Relu", "h1", "a1"),
        ("MatMul", "a1 d", "n1"),
    ]
    nodes = [*IN, *act("Relu"), *OUT, *again, ("Add", "n1 db", "y1"), ("Add", "x1 y1", "out")]
    site = only_site(opened(write(tmp_path / "dense.onnx", nodes, used(nodes))))
    assert site.calls == 2
    assert dict(site.rewrite.modules) == {"x": "x", "y": "y", "x@1": "x1", "y@1": "y1"}


def test_convolutions_that_see_one_place(tmp_path: Path) -> None:
    nodes = [("Conv", "x k ub", "h"), ("Relu", "h", "a"), ("Conv", "a l db", "y"), ("Add", "x y", "out")]
    given = {
        "k": weights(NEURONS, HIDDEN, 1, 1, seed=1), "l": weights(HIDDEN, NEURONS, 1, 1, seed=2),
        "ub": weights(NEURONS, seed=3),
        "db": weights(HIDDEN, seed=4),
    }  # fmt: skip
    site = only_site(opened(write(tmp_path / "dense.onnx", nodes, given, x=("batch", HIDDEN, 3, 4))))
    assert site.rewrite.channels


def test_a_branch_inside_a_node_may_read_values_outside(tmp_path: Path) -> None:
    """An If whose branches use a value of the graph around it."""

    def branch(op: str) -> Any:
        return helper.make_graph(
            [helper.make_node(op, ["y"], ["b"])], op, [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)]
        )

    nodes = [*IN, *act("Relu"), *OUT, ("If", "yes", "z", {"then_branch": branch("Neg"), "else_branch": branch("Abs")}),
             ("Add", "x z", "out")]  # fmt: skip
    path = write(tmp_path / "dense.onnx", nodes, used(nodes) | {"yes": np.array(True)})
    loaded = load_model(path)
    assert isinstance(loaded.example, dict)
    assert isinstance(loaded.model, OnnxModel)
    assert only_site(loaded.model).activation == "relu"
    expected = session(path).run(None, {"x": loaded.example["x"].numpy()})[0]
    torch.testing.assert_close(loaded.model(**loaded.example)["out"], torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_names_of_weights_may_be_anything(tmp_path: Path) -> None:
    nodes = [("MatMul", "x a.b", "m"), ("Add", "m a", "h"), ("Relu", "h", "r"), ("MatMul", "r training", "y"), *REST]
    found = ffn_weights()
    given = {"a.b": found["u"], "a": found["ub"], "training": found["d"]}
    site = only_site(opened(write(tmp_path / "dense.onnx", nodes, given)))
    assert np.array_equal(site.up.read().numpy(), found["u"].T)
    assert np.array_equal(site.down.read().numpy(), found["d"])
    assert site.path


def test_only_names_of_caches_are_caches(tmp_path: Path) -> None:
    """Time-series models call their data past_values."""
    nodes = [*IN, *act("Relu"), *OUT, ("Add", "x y", "o1"), ("Add", "o1 past_values", "o2"), ("Add", "o2 past_key_0", "out")]
    more = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1, HIDDEN]) for name in ("past_values", "past_key_0")
    ]
    path = write(tmp_path / "dense.onnx", nodes, used(nodes), more=more)
    ports = opened(path).ports
    assert (ports.fed, list(ports.implied)) == (("x", "past_values"), ["past_key_0"])
    given = {"x": torch.ones(2, 3, HIDDEN), "past_values": torch.ones(2, 1, HIDDEN), "past_key_0": torch.ones(2, 1, HIDDEN)}
    model = load_model(path, example=given).model
    assert isinstance(model, OnnxModel)
    assert not model.ports.implied
    expected = session(path).run(None, {name: value.numpy() for name, value in given.items()})[0]
    torch.testing.assert_close(model(**given)["out"], torch.from_numpy(expected), rtol=0, atol=1e-6)
