"""Files that point out of their folder: what lies outside is not read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from cli.command_line import Outcome
from cli.small_files import FILES
from cli.tiny_models import TINY, example, stack
from moeify import api
from moeify.errors import InputError
from moeify.runtime.session import session

Run = Callable[[str], Outcome]

pytestmark = pytest.mark.xdist_group("paths")

SECRET = np.arange(16, dtype=np.float32)

WAYS = ["../secret.bin", "sub/../../secret.bin", "./../secret.bin", "{outside}/secret.bin"]


def pointing(path: Path, location: str, length: int = SECRET.nbytes, offset: int = 0) -> None:
    """An ONNX file, y = x + w, where w lies in another file."""
    x = ir.Value(name="x", shape=ir.Shape([16]), type=ir.TensorType(ir.DataType.FLOAT))
    tensor = ir.ExternalTensor(
        location, offset, length, ir.DataType.FLOAT, shape=ir.Shape([16]), name="w", base_dir=path.parent
    )
    w = ir.Value(name="w", shape=ir.Shape([16]), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
    add = ir.node("Add", [x, w])
    add.outputs[0].name, add.outputs[0].shape, add.outputs[0].type = "y", x.shape, x.type
    graph = ir.Graph([x], add.outputs, nodes=[add], initializers=[w], opset_imports={"": 20}, name="g")
    path.write_bytes(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString())


@pytest.mark.parametrize("way", WAYS)
def test_onnx_weights_outside_the_folder_are_not_read(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    (tmp_path / "secret.bin").write_bytes(SECRET.tobytes())
    pointing(inside / "m.onnx", way.format(outside=tmp_path))
    monkeypatch.chdir(inside)
    for path in ("m.onnx", inside / "m.onnx"):
        with pytest.raises(InputError, match=r"m\.onnx: ONNX Runtime cannot load it") as caught:
            session(path)
        assert "\n" not in str(caught.value)


def test_onnx_weights_inside_the_folder_are_read(tmp_path: Path) -> None:
    """So that the refusals above are of the way, not of the file."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "weights.bin").write_bytes(SECRET.tobytes())
    pointing(tmp_path / "m.onnx", "sub/weights.bin")
    (y,) = session(tmp_path / "m.onnx").run(None, {"x": SECRET})
    assert np.array_equal(y, 2 * SECRET)


@pytest.mark.parametrize(
    ("caption", "length", "offset"),
    [("longer than the file", 2**40, 0), ("behind its end", 64, 2**40)],
)
def test_onnx_weights_that_are_not_there_are_one_line(caption: str, length: int, offset: int, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(SECRET.tobytes())
    pointing(tmp_path / "m.onnx", "weights.bin", length, offset)
    with pytest.raises(InputError, match="ONNX Runtime cannot load it") as caught:
        session(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as an ONNX file."""
    folder = tmp_path_factory.mktemp("exported")
    api.convert(stack().eval(), folder / "moe", experts=4, top_k=2, example=example())
    api.export(folder / "moe", folder / "whole.onnx", factory=stack, example=example())
    return folder / "whole.onnx"


@pytest.mark.parametrize("way", WAYS)
def test_an_inspection_follows_no_way_out(
    way: str, exported: Path, moeify: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sizes of the experts stand in an initializer: here in a file outside."""
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    model = ir.load(exported)
    moved = 0
    for value in model.graph.initializers.values():
        data = value.const_value
        if data is not None and value.name is not None and value.name.endswith(("offsets", ".k")):
            (tmp_path / "secret.bin").write_bytes(data.numpy().tobytes())
            location = way.format(outside=tmp_path)
            value.const_value = ir.ExternalTensor(
                location, 0, data.nbytes, data.dtype, shape=ir.Shape(data.numpy().shape), name=value.name, base_dir=inside
            )
            moved += 1
    assert moved
    (inside / "m.onnx").write_bytes(ir.to_proto(model).SerializeToString())
    monkeypatch.chdir(inside)
    done = moeify("inspect m.onnx")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1), done
    assert "m.onnx" in done.err


@pytest.mark.parametrize("way", ["../other.safetensors", "/etc/passwd", "sub/../../other.safetensors", "..", "", "\0"])
def test_an_index_names_files_of_its_folder_alone(way: str, moeify: Run, tmp_path: Path) -> None:
    FILES["llama"](tmp_path / "llama")
    (tmp_path / "llama" / "sub").mkdir()
    (tmp_path / "llama" / "model.safetensors").rename(tmp_path / "other.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": way}}
    (tmp_path / "llama" / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    done = moeify("inspect llama")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "model.safetensors.index.json: names the file" in done.err


@pytest.mark.parametrize("way", ["../rows.pt", "/etc/passwd", "source/../../rows.pt", "..\\rows.pt", "\0", "", "."])
def test_a_manifest_names_files_of_its_folder_alone(way: str, moeify: Run, tmp_path: Path) -> None:
    api.convert(stack().eval(), tmp_path / "moe", experts=4, example=example())
    manifest = tmp_path / "moe" / "moeify.json"
    data = json.loads(manifest.read_text("utf-8"))
    data["digests"][way] = "00" * 32
    manifest.write_text(json.dumps(data), "utf-8")
    done = moeify(f"evaluate moe --data rows.pt {TINY}")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1), done
    assert done.err.startswith("moeify: error: moe")


def test_a_manifest_runs_no_factory_that_it_names(moeify: Run, tmp_path: Path) -> None:
    (tmp_path / "trap.py").write_text("open('canary', 'w').close()", "utf-8")
    api.convert(stack().eval(), tmp_path / "moe", experts=4, example=example())
    manifest = tmp_path / "moe" / "moeify.json"
    data = json.loads(manifest.read_text("utf-8"))
    data["source"].update(factory="trap:make", model_class="trap.Model")
    manifest.write_text(json.dumps(data), "utf-8")
    done = moeify("evaluate moe --data rows.pt")
    assert (done.code, done.out) == (1, "")
    assert "--factory" in done.err
    assert not (tmp_path / "canary").exists()
