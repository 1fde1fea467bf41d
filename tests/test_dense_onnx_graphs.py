"""Dense ONNX graphs of unusual shapes, converted with all experts on: what they gave before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

import moeify
from moeify.runtime.native import library
from moeify.runtime.session import session
from onnx_files import HIDDEN, IN, NEURONS, OUT, REST, ffn_weights, weights, write

Feeds = dict[str, NDArray[Any]]
RELU = [*IN, ("Relu", "h", "a"), *OUT]


def normal(*shape: int) -> NDArray[Any]:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def used(*names: str) -> dict[str, Any]:
    return {name: ffn_weights()[name] for name in ("u", "ub", "d", "db", *names)}


def shared_twice(path: Path) -> Feeds:
    """One network, called twice."""
    again = [("Add", "x y", "x1"), ("MatMul", "x1 u", "m1"), ("Add", "m1 ub", "h1"), ("Relu", "h1", "a1")]
    last = [("MatMul", "a1 d", "n1"), ("Add", "n1 db", "y1"), ("Add", "x1 y1", "out")]
    write(path, [*RELU, *again, *last], used())
    return {"x": normal(3, 4, HIDDEN)}


def convolutions(path: Path) -> Feeds:
    nodes = [("Conv", "x k ub", "h"), ("Relu", "h", "a"), ("Conv", "a l db", "y"), ("Add", "x y", "out")]
    kernels = {"k": weights(NEURONS, HIDDEN, 1, 1, seed=1), "l": weights(HIDDEN, NEURONS, 1, 1, seed=2)}
    biases = {name: value for name, value in used().items() if name in ("ub", "db")}
    write(path, nodes, kernels | biases, x=("batch", HIDDEN, 3, 4))
    return {"x": normal(3, HIDDEN, 3, 4)}


def from_input_to_output(path: Path) -> Feeds:
    """Nothing stands around the network."""
    write(path, [*IN, ("Relu", "h", "a"), ("MatMul", "a d", "n"), ("Add", "n db", "out")], used())
    return {"x": normal(3, 4, HIDDEN)}


def flat_rows(path: Path) -> Feeds:
    """Gemm on rows whose sizes are read from x, as older exporters write GPT-2."""
    nodes = [("Shape", "x", "sx"), ("Reshape", "x flat", "x2"), ("Gemm", "x2 u ub", "h"), ("Relu", "h", "a"),
             ("Gemm", "a d db", "y2"), ("Reshape", "y2 sx", "y"), *REST]  # fmt: skip
    write(path, nodes, used() | {"flat": np.array([-1, HIDDEN])})
    return {"x": normal(3, 4, HIDDEN)}


def names_that_clash(path: Path) -> Feeds:
    """Values and weights are called as those of the layer will be."""
    nodes = [("MatMul", "x u.weight", "m"), ("Add", "m ub", "h"), ("Relu", "h", "a"), ("MatMul", "a d.weight", "y"),
             ("Add", "y d.up", "moeify/x_0"), ("Add", "moeify/x_0 x", "out")]  # fmt: skip
    given = {"u.weight": used()["u"], "ub": used()["ub"], "d.weight": used()["d"], "d.up": normal(3, 4, HIDDEN)}
    write(path, nodes, given)
    return {"x": normal(3, 4, HIDDEN)}


def three_sizes(path: Path) -> Feeds:
    """x has four axes."""
    write(path, [*RELU, *REST], used(), x=("batch", "views", "sequence", HIDDEN))
    return {"x": normal(2, 3, 4, HIDDEN)}


GRAPHS = (shared_twice, convolutions, from_input_to_output, flat_rows, names_that_clash, three_sizes)


@pytest.mark.sampled
@pytest.mark.parametrize("graph", GRAPHS, ids=[graph.__name__ for graph in GRAPHS])
def test_all_experts_on_give_what_the_graph_gave(graph: Any, tmp_path: Path) -> None:
    feeds = graph(tmp_path / "dense.onnx")
    example = {name: torch.from_numpy(value) for name, value in feeds.items()}
    done = moeify.convert(tmp_path / "dense.onnx", tmp_path / "out", experts=4, top_k=4, example=example)
    assert len(done.report.layers) == 1
    expected = session(tmp_path / "dense.onnx").run(None, feeds)[0]
    for native in (False, True) if library() is not None else (False,):
        found = session(tmp_path / "out" / "model.onnx", native=native).run(None, feeds)[0]
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    again = moeify.load(tmp_path / "out")
    assert np.abs(again(**example)["out"].numpy() - expected).max() < 1e-5 * np.abs(expected).max()


def decoder(path: Path) -> Path:
    """Token ids to logits, with a cache that comes in and goes out."""
    cache = helper.make_tensor_value_info("past_key_values.0.key", TensorProto.FLOAT, ["batch", 1, "past", HIDDEN])
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    nodes = [
        ("Gather", "table input_ids", "e"), ("Unsqueeze", "e one_axis", "k"),
        ("Concat", "past_key_values.0.key k", "present.0.key", {"axis": 2}), ("ReduceMean", "present.0.key two_axis", "c"),
        ("Squeeze", "c one_axis", "c1"), ("Unsqueeze", "c1 one_axis", "c2"), ("Add", "e c2", "x"), *RELU, ("Add", "x y", "z"),
        ("MatMul", "z head", "logits"),
    ]  # fmt: skip
    nodes[3] = ("ReduceMean", "present.0.key two_axis", "c", {"keepdims": 0})
    given = used() | {"table": weights(13, HIDDEN, seed=7), "head": weights(HIDDEN, 13, seed=8)}
    given |= {"one_axis": np.array([1]), "two_axis": np.array([2])}
    return write(path, nodes, given, x=None, outputs=("logits", "present.0.key"), more=[ids, cache])


def test_caches_of_a_decoder_are_left_empty(tmp_path: Path) -> None:
    path = decoder(tmp_path / "dense.onnx")
    ids = [{"input_ids": torch.randint(13, (4, 9), generator=torch.Generator().manual_seed(i))} for i in range(4)]
    done = moeify.convert(path, tmp_path / "out", recipe="markers", experts=4, top_k=4, calibrate=ids)
    assert done.report.nulls
    feeds = {"input_ids": ids[0]["input_ids"].numpy(), "past_key_values.0.key": normal(4, 1, 5, HIDDEN)}
    expected = session(path).run(None, feeds)
    found = session(tmp_path / "out" / "model.onnx").run(None, feeds)
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() < 1e-5 * np.abs(other).max()
    with pytest.raises(moeify.MoeifyError, match="the token id 13, ids must be below 13"):
        moeify.convert(path, tmp_path / "no", recipe="markers", calibrate=[{"input_ids": torch.full((4, 9), 13)}])


@pytest.mark.slow
def test_it_is_timed_beside_the_dense_file(tmp_path: Path) -> None:
    write(tmp_path / "dense.onnx", [*RELU, *REST], used())
    moeify.convert(tmp_path / "dense.onnx", tmp_path / "out", experts=4, top_k=2)
    found = moeify.bench(tmp_path / "out", tokens=(3,), rounds=2, seconds=0.1)
    assert str(found)
    assert found.to_json()
