"""export_onnx on small modules: names, axes, numbers, what is left as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from moeify.errors import InputError
from moeify.export.onnx import exporting
from moeify.export.onnx.body_shape import BodyShape
from moeify.export.onnx.exporting import export_onnx
from moeify.export.onnx.inspecting import onnx_layers
from moeify.export.onnx.report import OnnxReport, Port
from moeify.layers.moe_layer import MoELayer
from moeify.runtime.native import wanted
from moeify.runtime.session import session
from onnx_blocks import HIDDEN, Block, inputs, moe_layer, normal


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Block, Path, OnnxReport]:
    model = Block(moe_layer(gate_rule="softmax", normalize=True, idle=True))
    path = tmp_path_factory.mktemp("onnx") / "block.onnx"
    return model, path, export_onnx(model, inputs(), path)


def test_report(exported: tuple[Block, Path, OnnxReport]) -> None:
    _, path, report = exported
    assert report.inputs == (
        Port("x", "float", ("batch", "sequence", HIDDEN)),
        Port("scale", "float", ("batch", "sequence", 1)),
    )
    assert [port.name for port in report.outputs] == ["y", "hidden"]
    assert report.moe_layers == ("moe",)
    assert report.size == path.stat().st_size
    assert [check.name for check in report.checks] == [
        f"{prefix}{name}{library}"
        for prefix in ("all experts on, ", "")
        for library in ("", *([", native library"] if wanted() else []))
        for name in ("the example", "batch + 1", "batch + 1, length + 3", "length - 1")
    ]
    assert all(check.distance < 1e-6 and check.flipped == 0 for check in report.checks)
    assert str(report).splitlines()[1:4] == [
        "  input x float [batch, sequence, 8]",
        "  input scale float [batch, sequence, 1]",
        "  output y float [batch, sequence, 8]",
    ]
    assert report.to_json()["inputs"][0] == {"name": "x", "dtype": "float", "dims": ("batch", "sequence", 8)}


def test_the_file_gives_what_the_model_gives_at_any_size(exported: tuple[Block, Path, OnnxReport]) -> None:
    model, path, _ = exported
    runtime = session(path, threads=1)
    for batch, tokens in ((1, 1), (4, 2), (1, 33), (0, 3)):
        given = inputs(batch, tokens)
        with torch.no_grad():
            want = model(**given)
        y, hidden = runtime.run(None, {name: value.numpy() for name, value in given.items()})
        np.testing.assert_allclose(y, want["y"].numpy(), rtol=1e-6, atol=2e-5)
        np.testing.assert_allclose(hidden, want["hidden"].numpy(), atol=1e-5)


def test_weights_are_stored_once_and_the_file_is_sound(exported: tuple[Block, Path, OnnxReport]) -> None:
    _, path, _ = exported
    model = onnx.load(path)
    onnx.checker.check_model(model)
    names = {tensor.name for tensor in model.graph.initializer}
    assert {f"moe.{name}" for name in ("up", "down", "gate", "idle", "offsets", "k")} <= names
    squares = [tensor for tensor in model.graph.initializer if list(tensor.dims) == [HIDDEN, HIDDEN]]
    assert len(squares) == 1  # first and second share one matrix
    assert [function.name for function in model.functions] == ["MoE"]


def test_inspection(exported: tuple[Block, Path, OnnxReport]) -> None:
    _, path, _ = exported
    (layer,) = onnx_layers(path)
    assert (layer.name, layer.hidden, layer.output, layer.k) == ("moe", HIDDEN, HIDDEN, 2)
    assert (layer.offsets, layer.sizes) == ((3, 5, 8, 12, 17), (2, 3, 4, 5))
    assert layer.shape == BodyShape(4, "gelu", True, "softmax", True, frozenset({"k", "gate", "idle"}))
    assert layer.shape.gated


def test_k_can_be_set(exported: tuple[Block, Path, OnnxReport]) -> None:
    model, path, _ = exported
    runtime = session(path, threads=1, replace={"moe.k": np.array(3)})
    model.moe.top_k = 3
    try:
        with torch.no_grad():
            want = model(**inputs())["y"].numpy()
    finally:
        model.moe.top_k = 2
    found = runtime.run(["y"], {name: value.numpy() for name, value in inputs().items()})[0]
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(HIDDEN, HIDDEN), moe_layer()).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    report = export_onnx(model, (normal(3, HIDDEN),), tmp_path / "m.onnx")
    assert [port.name for port in (*report.inputs, *report.outputs)] == ["input", "output_0"]
    assert report.inputs[0].dims == ("batch", HIDDEN)
    assert [module.training for module in model] == [True, False, True]
    assert model[2].top_k == 2
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("layer", "choice"),
    [(moe_layer(None), None), (moe_layer(None, threshold=0.2), None), (moe_layer(1, threshold=0.2, gate_rule="sigmoid"), 1)],
    ids=["all on", "threshold", "top-1 and threshold"],
)
def test_choices(layer: MoELayer, choice: int | None, tmp_path: Path) -> None:
    report = export_onnx(layer, (normal(6, HIDDEN),), tmp_path / "m.onnx")
    assert max(check.distance for check in report.checks) < 1e-6
    assert onnx_layers(tmp_path / "m.onnx")[0].k == choice


def test_a_layer_that_is_called_twice_is_stored_once(tmp_path: Path) -> None:
    layer = moe_layer()
    report = export_onnx(nn.Sequential(layer, layer), (normal(1, 4, HIDDEN),), tmp_path / "m.onnx")
    assert report.moe_layers == ("1", "1")  # torch knows a tied module by its last name
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert [node.name for node in graph.node if node.domain == "moeify"] == ["1", "1@1"]
    assert sorted(t.name for t in graph.initializer if t.name.endswith((".up", ".k"))) == ["1.k", "1.up"]


def test_half_precision(tmp_path: Path) -> None:
    report = export_onnx(moe_layer().half(), (normal(6, HIDDEN).half(),), tmp_path / "m.onnx")
    assert report.inputs[0].dtype == "float16"
    assert max(check.distance for check in report.checks) < 5e-3


def test_large_weights_go_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "EMBEDDED", 1000)
    path = tmp_path / "m.onnx"
    report = export_onnx(moe_layer(), (normal(6, HIDDEN),), path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert report.size == sum(p.stat().st_size for p in tmp_path.iterdir())
    onnx.checker.check_model(str(path))
    assert onnx_layers(path)[0].k == 2
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(InputError, match=r"m\.onnx: ONNX Runtime cannot load it: "):
        session(path)


@pytest.mark.parametrize("lowering", ["standard", "contrib"])
def test_a_layer_that_is_called_twice_in_place_of_nodes(lowering: str, tmp_path: Path) -> None:
    layer = moe_layer(activation="silu", offsets=(3, 6, 9, 12, 15))
    export_onnx(nn.Sequential(layer, layer), (normal(1, 4, HIDDEN),), tmp_path / "m.onnx", lowering=lowering)
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert [t.name for t in graph.initializer if t.name.endswith((".up", ".k"))] == ["1.up", "1.k"]
    assert {node.domain for node in graph.node} == {""} | ({"com.microsoft"} if lowering == "contrib" else set())
    assert sum(node.op_type == "TopK" for node in graph.node) == 2


@pytest.mark.sampled
@pytest.mark.parametrize("lowering", ["portable", "standard", "contrib"])
def test_half_precision_in_every_lowering(lowering: str, tmp_path: Path) -> None:
    layer = moe_layer(activation="silu", offsets=(3, 6, 9, 12, 15), idle=True).half()
    report = export_onnx(layer, (normal(6, HIDDEN).half(),), tmp_path / "m.onnx", lowering=lowering)
    assert (report.inputs[0].dtype, report.outputs[0].dtype) == ("float16", "float16")
    assert max(check.distance for check in report.checks) < 5e-3
