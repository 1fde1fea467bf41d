"""Exports in lower precisions: what is stored how, how near the file is, and that a wrong scale is found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moeify.errors import ConversionError, UsageError
from moeify.export.onnx.exporting import export_onnx
from moeify.export.onnx.inspecting import onnx_layers
from moeify.export.onnx.precision import matrix_rounding
from moeify.export.onnx.precision.rounding import Rounded, relative_error, rounded, stored_matrix
from moeify.export.onnx.report import OnnxReport
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.layers.moe_layer import MoELayer
from moeify.runtime.session import session
from onnx_blocks import moe_layer, normal

#: They export whole models.
pytestmark = pytest.mark.slow

HIDDEN = 64


class Small(nn.Module):
    """Ids [batch, tokens] => logits [batch, tokens, 96]; the head is the embedding; one layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(96, HIDDEN)
        self.mixed = nn.Linear(HIDDEN, HIDDEN)
        offsets = (32, 64, 96, 128, 160)
        self.moe = MoELayer(MoEConfig(HIDDEN, HIDDEN, "silu", True, offsets, RouterConfig("linear"), top_k=2))
        self.head = nn.Linear(HIDDEN, 96, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.moe(self.mixed(x))
        logits: Tensor = self.head(x + self.moe(x))
        return logits


def small() -> Small:
    model = Small()
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(model.named_parameters()):
            parameter.copy_(normal(*parameter.shape, seed=seed) * HIDDEN**-0.5 * (2 if name.startswith("moe.") else 1))
    return model.eval()


IDS = torch.randint(96, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, OnnxReport]]:
    folder, model = tmp_path_factory.mktemp("precision"), small()
    paths = {name: folder / f"{name}.onnx" for name in ("fp32", "fp16", "int8", "int4")}
    return {name: (path, export_onnx(model, (IDS,), path, precision=name)) for name, path in paths.items()}


def operators(path: Path) -> Counter[str]:
    return Counter(f"{node.domain or 'onnx'}::{node.op_type}" for node in ir.load(path).graph)


def logits(path: Path, native: bool = False) -> NDArray[Any]:
    return np.asarray(session(path, native=native).run(None, {"ids": IDS.numpy()})[0])


def test_every_matrix_but_router_and_embedding_is_quantised(exported: dict[str, tuple[Path, OnnxReport]]) -> None:
    for precision, operator in (("int8", "DynamicQuantizeMatMul"), ("int4", "MatMulNBits")):
        path, report = exported[precision]
        found = operators(path)
        assert (found["moeify::QMoE"], found["moeify::MoE"], found[f"com.microsoft::{operator}"]) == (2, 0, 2)
        assert found["onnx::MatMul"] + found["onnx::Gemm"] == 2  # the router's, twice
        graph = ir.load(path).graph
        floats = {
            name: v for name, v in graph.initializers.items() if v.dtype == ir.DataType.FLOAT and not name.endswith("scale")
        }
        embedding = next(node.inputs[0] for node in graph if node.op_type == "Gather")
        matrices = [v.name for v in floats.values() if v.const_value is not None and v.const_value.size >= 4 * HIDDEN]
        router = next(name for name, v in floats.items() if v.shape is not None and v.shape.numpy() == (HIDDEN, 4))
        assert embedding is not None
        assert sorted(map(str, matrices)) == sorted([str(embedding.name), router])
        assert {m.name for m in report.stored} >= {"moe.up", "moe.gate", "moe.down", "mixed"}
        assert len(report.stored) == 5


def test_file_and_errors_shrink_and_grow_with_the_precision(exported: dict[str, tuple[Path, OnnxReport]]) -> None:
    sizes = [exported[name][1].size for name in ("fp32", "fp16", "int8", "int4")]
    weights = 4 * (96 * HIDDEN + HIDDEN * HIDDEN + 3 * 160 * HIDDEN)
    assert sizes[0] - sizes[1] == pytest.approx(weights / 2, rel=0.1)
    assert sizes[0] - sizes[2] > 0.6 * weights  # the embedding stays
    assert sizes[2] - sizes[3] > 0.05 * weights
    expected = small()(IDS).detach().numpy()
    scale = np.abs(expected).max()
    bounds = {"fp32": 1e-6, "fp16": 2e-3, "int8": 6e-2, "int4": 0.5}
    distances = [float(np.abs(logits(exported[name][0]) - expected).max() / scale) for name in bounds]
    assert all(distance < bound for distance, bound in zip(distances, bounds.values()))
    assert distances == sorted(distances)
    errors = {name: [m.error for m in exported[name][1].stored] for name in bounds}
    assert errors["fp32"] == []
    for name, low, high in (("fp16", 1e-4, 4e-4), ("int8", 3e-3, 1e-2), ("int4", 6e-2, 0.12)):
        assert all(low < error < high for error in errors[name])


def test_the_report_says_what_was_rounded(exported: dict[str, tuple[Path, OnnxReport]]) -> None:
    report = exported["int8"][1]
    assert report.precision == "int8"
    assert "int8: 5 matrices in 8 bits, relative error of the weights at most " in str(report)
    stored = report.to_json()["stored"]
    assert {entry["form"] for entry in stored} == {"moeify::QMoE", "com.microsoft::DynamicQuantizeMatMul"}
    assert all(check.bound >= 0.1 for check in report.checks)
    assert "matrices" not in str(exported["fp32"][1])


def test_inspection_reads_quantised_layers(exported: dict[str, tuple[Path, OnnxReport]]) -> None:
    plain = onnx_layers(exported["fp32"][0])
    for precision, bits in (("int8", 8), ("int4", 4)):
        layers = onnx_layers(exported[precision][0])
        assert [replace(layer, shape=replace(layer.shape, bits=0)) for layer in layers] == list(plain)
        assert [layer.shape.bits for layer in layers] == [bits, bits]
        assert [layer.name for layer in layers] == ["moe", "moe"]


def test_fp16_casts_what_it_stores(exported: dict[str, tuple[Path, OnnxReport]]) -> None:
    path, report = exported["fp16"]
    assert operators(path)["moeify::MoE"] == 2
    assert {m.form for m in report.stored} == {"float16"}
    kinds = {name: value.dtype for name, value in ir.load(path).graph.initializers.items()}
    assert kinds["moe.up.float16"] == kinds["moe.down.float16"] == ir.DataType.FLOAT16


def test_a_matrix_that_float16_cannot_hold_stays(tmp_path: Path) -> None:
    model = nn.Linear(8, 8, bias=False)
    nn.init.constant_(model.weight, 7e4)
    report = export_onnx(model, (normal(3, 8),), tmp_path / "m.onnx", precision="fp16")
    assert report.stored == ()


def test_4_bits_become_8_where_blocks_do_not_fit(tmp_path: Path) -> None:
    """hidden is 8."""
    report = export_onnx(moe_layer(), (normal(6, 8),), tmp_path / "m.onnx", precision="int4")
    assert [m.bits for m in report.stored] == [8, 8, 8]


kept: Any = Rounded.unsigned.fget  # type: ignore[attr-defined]


def doubled(which: int) -> Callable[..., Rounded]:
    """Rounds as it should, but the scales of the matrix number `which` are twice what they are."""
    calls = []

    def wrong(matrix: NDArray[np.float32], bits: int, importance: NDArray[np.float32] | None = None) -> Rounded:
        calls.append(1)
        parts = rounded(matrix, bits, importance)
        return replace(parts, scale=parts.scale * 2) if len(calls) == which + 1 else parts

    return wrong


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("factor", [2, 0.5, 1.1, -1])
def test_a_wrong_scale_is_found(factor: float, bits: int) -> None:
    matrix = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    parts = rounded(matrix, bits)
    assert stored_matrix("m", "f", matrix, parts).error < 0.2
    wrong = parts.scale.copy()
    wrong[3, -1] *= factor
    with pytest.raises(ConversionError, match=rf"^m: a weight is .* further from the model's than {bits} bits take it$"):
        stored_matrix("m", "f", matrix, replace(parts, scale=wrong))


@pytest.mark.parametrize("which", [1, 2], ids=["a product", "an MoE layer"])
def test_nothing_is_written_with_a_wrong_scale(which: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_rounding, "rounded", doubled(which))
    with pytest.raises(ConversionError, match="further from the model's than 8 bits take it"):
        export_onnx(small(), (IDS,), tmp_path / "m.onnx", precision="int8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_integers_in_another_order_are_found(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the file computes is compared with the model, too."""
    monkeypatch.setattr(Rounded, "unsigned", property(lambda self: kept(self)[:, ::-1]))
    with pytest.raises(ConversionError, match=r"all experts on, .*of the largest value away from the model"):
        export_onnx(small(), (IDS,), tmp_path / "m.onnx", precision=precision)
    assert list(tmp_path.iterdir()) == []


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        export_onnx(small(), (IDS,), tmp_path / "m.onnx", precision="int2")
    assert str(caught.value) == "precision is 'int2': choose one of fp32, fp16, int8, int4"
    with pytest.raises(UsageError) as caught:
        export_onnx(small().half(), (IDS,), tmp_path / "m.onnx", precision="int8")
    assert str(caught.value) == (
        "precision int8 starts from a float32 model, and this one is float16: convert it first: model.float()"
    )


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_is_to_the_nearest(bits: int) -> None:
    rng = np.random.default_rng(0)
    matrix = (rng.standard_normal((5, 64)) * 10.0 ** rng.integers(-8, 8, (5, 1))).astype(np.float32)
    matrix[2] = 0
    parts = rounded(matrix, bits)
    assert parts.scale.shape == (5, 1 if bits == 8 else 2)
    step = np.repeat(np.abs(parts.scale), 64 // parts.scale.shape[1], axis=1)
    cut = parts.values == 7  # in 4 bits what mirrors the weight furthest from 0 is cut off by up to one step
    assert (np.abs(parts.restored - matrix) <= np.where(cut & (bits == 4), 1.0001, 0.5001) * step).all()
    furthest = {8: [127, 127, 0, 127, 127], 4: [8, 8, 0, 8, 8]}
    assert np.abs(parts.values.astype(int)).max(axis=1).tolist() == furthest[bits]
    assert relative_error(matrix[2:3], parts.restored[2:3]) == 0
    stored = parts.unsigned
    if bits == 4:
        assert stored.shape == (5, 32)
        stored = np.stack([stored & 15, stored >> 4], axis=-1).reshape(5, 64)
    np.testing.assert_array_equal(stored.astype(int) - 2 ** (bits - 1), parts.values)


def test_4_bits_cut_off_what_counts_little() -> None:
    """Of two blocks one has its furthest weight in a column that counts, the other in one that does not."""
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((8, 64)).astype(np.float32)
    matrix[:, [0, 32]] = 6.0
    importance = np.ones(64, dtype=np.float32)
    importance[0], importance[32] = 100.0, 1e-3
    nearest, weighted = rounded(matrix, 4), rounded(matrix, 4, importance)

    def error(parts: Rounded) -> NDArray[np.float32]:
        return np.asarray((np.square(parts.restored - matrix) * importance).reshape(8, 2, 32).sum(axis=-1))

    assert (error(weighted) <= error(nearest)).all()
    assert (np.abs(weighted.scale[:, 1]) < 0.8 * np.abs(nearest.scale[:, 1])).all()
    np.testing.assert_allclose(weighted.restored[:, 0], 6.0, rtol=0.05)
    assert stored_matrix("m", "f", matrix, weighted).bits == 4
