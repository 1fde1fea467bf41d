"""A dense ONNX file converts as the torch model that it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import moeify
from moeify import api
from moeify.api import Conversion
from moeify.layers.budget import moe_layers
from moeify.runtime.native import library
from moeify.runtime.session import session
from onnx_files import HIDDEN, NEURONS, Blocks, export, inputs

#: They export whole models.
pytestmark = pytest.mark.slow

EXPORTERS: dict[str, dict[str, Any]] = {
    "torchscript-17": {"dynamo": False, "opset": 17},
    "dynamo-18": {"dynamo": True, "opset": 18},
    "dynamo-20-external": {"dynamo": True, "opset": 20, "external": True},
}
PATHS = ("relu", "gelu", "tanh", "gated")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model by every exporter."""
    folder = tmp_path_factory.mktemp("dense")
    return {name: export(Blocks(), folder / f"{name}.onnx", **options) for name, options in EXPORTERS.items()}


def natives() -> tuple[bool, ...]:
    return (False, True) if library() is not None else (False,)


def of_file(path: Path, x: Tensor, native: bool = False) -> Tensor:
    return torch.from_numpy(session(path, native=native).run(None, {"x": x.numpy()})[0])


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative to the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def batches() -> list[dict[str, Tensor]]:
    return [{"x": inputs(8, 16, seed=seed)} for seed in range(4)]


def tuples() -> list[tuple[Tensor, ...]]:
    return [(batch["x"],) for batch in batches()]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_with_all_experts_on_the_file_gives_what_the_dense_one_gives(
    files: dict[str, Path], exporter: str, tmp_path: Path
) -> None:
    done = moeify.convert(files[exporter], tmp_path / "out", experts=4, top_k=4)
    assert [(layer.path, layer.activation) for layer in done.report.layers] == [
        ("relu", "relu"), ("gelu", "gelu"), ("tanh", "gelu-tanh"), ("gated", "silu")
    ]  # fmt: skip
    x = inputs(2, 9, seed=3)
    expected = of_file(files[exporter], x)
    for native in natives():
        assert distance(of_file(tmp_path / "out" / "model.onnx", x, native), expected) < 1e-5
    assert distance(done.model(x=x)["y"], expected) < 1e-5


@pytest.fixture(scope="module")
def both(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Conversion, Conversion, Path]:
    """(of the ONNX file, of the torch model, the folder of the first): half of the experts, with calibration."""
    folder = tmp_path_factory.mktemp("both")
    options: dict[str, Any] = {"recipe": "markers", "experts": 4, "top_k": 2}
    of_onnx = moeify.convert(files["dynamo-18"], folder / "onnx", calibrate=batches(), **options)
    of_torch = moeify.convert(Blocks().eval(), calibrate=tuples(), example=(inputs(),), **options)
    return of_onnx, of_torch, folder / "onnx"


def test_the_experts_are_those_of_the_torch_conversion(both: tuple[Conversion, Conversion, Path]) -> None:
    found, expected = (moe_layers(done.model) for done in both[:2])
    assert len(found) == len(expected) == len(PATHS)
    for one, other in zip(found.values(), expected.values()):
        assert one.config.offsets == other.config.offsets
        assert torch.equal(one.up, other.up)
        assert torch.equal(one.down, other.down)
        assert one.router is not None
        assert other.router is not None
        for mine, theirs in zip(one.router.state_dict().values(), other.router.state_dict().values(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_the_outputs_are_those_of_the_torch_conversion(both: tuple[Conversion, Conversion, Path]) -> None:
    x = inputs(2, 9, seed=3)
    with torch.no_grad():
        expected = both[1].model(x)
    assert distance(both[0].model(x=x)["y"], expected) < 1e-4
    for native in natives():
        assert distance(of_file(both[2] / "model.onnx", x, native), expected) < 1e-4


def test_layers_are_judged_on_the_calibration_data(both: tuple[Conversion, Conversion, Path]) -> None:
    found, expected = (done.report.nulls for done in both[:2])
    assert list(found) == list(PATHS)
    for path in PATHS:
        for name, value in expected[path]["errors"].items():
            assert found[path]["errors"][name] == pytest.approx(value, rel=1e-3)


def test_the_folder_says_what_was_done(both: tuple[Conversion, Conversion, Path]) -> None:
    folder = both[2]
    names = {"model.onnx", "moeify.json", "moeify.safetensors", "recipe.toml", "report.json", "source"}
    assert {path.name for path in folder.iterdir()} == names
    manifest = json.loads((folder / "moeify.json").read_text("utf-8"))
    assert manifest["source"]["kind"] == "onnx"
    assert "dynamo-18.onnx" in manifest["source"]["digests"]
    assert {layer["path"]: layer["rewrite"]["way"] for layer in manifest["layers"]} == dict.fromkeys(PATHS, "graph")
    assert (folder / "moeify.safetensors").stat().st_size < 8 * HIDDEN * NEURONS  # the rows are in model.onnx alone


def test_the_folder_opens_again(both: tuple[Conversion, Conversion, Path]) -> None:
    model, x = moeify.load(both[2]), inputs(2, 9, seed=3)
    assert distance(model(x=x)["y"], both[0].model(x=x)["y"]) < 1e-6
    moeify.set_top_k(model, 4)
    assert distance(model(x=x)["y"], both[0].model(x=x)["y"]) > 1e-3


def test_it_is_evaluated_beside_the_dense_file(both: tuple[Conversion, Conversion, Path], files: dict[str, Path]) -> None:
    found = moeify.evaluate(both[2], batches(), dense=files["dynamo-18"])
    assert found.active_fraction is not None
    assert 0.4 < found.active_fraction < 0.7
    converted = next(score for score in found.scores if score.name == "converted")
    assert converted.divergence is not None
    assert converted.divergence.relative_error > 0
    assert [load.path for load in found.layers]


def test_it_is_exported_again_in_other_forms(both: tuple[Conversion, Conversion, Path], tmp_path: Path) -> None:
    x = inputs(2, 9, seed=3)
    expected = both[0].model(x=x)["y"]
    report = api.export(both[2], tmp_path / "standard.onnx", lowering="standard")
    assert {layer.lowering for layer in report.lowered} == {"standard"}
    assert distance(of_file(tmp_path / "standard.onnx", x), expected) < 1e-5
    rounded = api.export(both[2], tmp_path / "int8.onnx", precision="int8")
    assert rounded.stored
    assert distance(of_file(tmp_path / "int8.onnx", x), expected) < 0.5


def test_an_error_of_a_layer_does_to_the_output_what_it_does_in_torch(files: dict[str, Path]) -> None:
    """What a budget is shared by."""
    of_onnx, of_torch = moeify.open_model(files["dynamo-18"]), moeify.open_model(Blocks().eval(), example=(inputs(),))
    found, expected = (
        graph.host.effects(graph.host.find()[0], data, 0.1, torch.Generator().manual_seed(5))
        for graph, data in ((of_onnx, batches()), (of_torch, tuples()))
    )
    assert found == pytest.approx(expected, rel=1e-3)
    assert min(found) > 0


def test_layers_can_be_left_dense(files: dict[str, Path], tmp_path: Path) -> None:
    done = moeify.convert(files["dynamo-20-external"], tmp_path / "out", experts=4, top_k=4, layers="gelu")
    assert [layer.path for layer in done.report.layers] == ["gelu"]
    x = inputs(2, 9, seed=3)
    assert distance(of_file(tmp_path / "out" / "model.onnx", x), of_file(files["dynamo-20-external"], x)) < 1e-5


def test_the_dense_file_stays_as_it_was(files: dict[str, Path], tmp_path: Path) -> None:
    before = files["torchscript-17"].read_bytes()
    moeify.convert(files["torchscript-17"], tmp_path / "out", experts=4, top_k=2)
    assert files["torchscript-17"].read_bytes() == before


def test_equal_runs_write_equal_bytes(files: dict[str, Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        moeify.convert(files["dynamo-18"], tmp_path / name, experts=4, top_k=2)
    for path in sorted(file for file in (tmp_path / "one").rglob("*") if file.is_file()):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path.name


def test_inspect_and_plan_say_what_stands_in_it(files: dict[str, Path]) -> None:
    found = moeify.inspect(files["dynamo-18"])
    assert found.kind == "dense"
    assert [row["path"] for row in found.rows] == list(PATHS)
    plan = api.plan(files["dynamo-18"], experts=4, top_k=1)
    assert [layer.rewrite for layer in plan.layers] == ["graph"] * 4
    assert plan.active_fraction == pytest.approx(0.25, abs=0.06)  # routers are large in layers so small


def test_values_come_out_in_the_type_of_numpy(files: dict[str, Path]) -> None:
    """What a file gives is what its own session gives, to the last bit where nothing is converted."""
    from moeify.frontend.load_model import load_model

    loaded = load_model(files["dynamo-20-external"])
    assert isinstance(loaded.example, dict)
    found = loaded.model(**loaded.example)["y"].numpy()
    assert np.allclose(found, of_file(files["dynamo-20-external"], loaded.example["x"]).numpy(), rtol=0, atol=1e-6)
