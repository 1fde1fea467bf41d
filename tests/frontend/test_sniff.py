"""The kind of a path is told by its content."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from moeify.errors import InputError
from moeify.frontend.sniff import sniff

_MODEL = nn.Linear(3, 2)


def _onnx(path: Path, **fields: str) -> None:
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [], [])
    path.write_bytes(onnx.helper.make_model(graph, **fields).SerializeToString())


def _zip(path: Path, *names: str) -> None:
    """An archive with parts of those names; the rest of it makes no difference."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")


def _folder(path: Path, *files: str) -> None:
    path.mkdir()
    for name in files:
        (path / name).write_text("{}")


KINDS: list[tuple[str, str, Callable[[Path], object]]] = [
    ("a state_dict", "torch", lambda p: torch.save(_MODEL.state_dict(), p)),
    ("a whole module", "torch", lambda p: torch.save(_MODEL, p)),
    ("torch.save before 1.6", "pickle", lambda p: torch.save(_MODEL.state_dict(), p, _use_new_zipfile_serialization=False)),
    ("another pickle", "pickle", lambda p: p.write_bytes(pickle.dumps([1]))),
    ("safetensors", "safetensors", lambda p: save_file(_MODEL.state_dict(), p)),
    ("GGUF", "gguf", lambda p: p.write_bytes(b"GGUF\x03\x00\x00\x00")),
    ("ONNX", "onnx", lambda p: _onnx(p)),
    ("ONNX with a producer", "onnx", lambda p: _onnx(p, producer_name="me")),
    ("TorchScript", "torchscript", lambda p: _zip(p, "m/data.pkl", "m/code/__torch__.py", "m/constants.pkl")),
    ("torch.export", "exported-program", lambda p: _zip(p, "m/archive_format", "m/data/weights/weight_0")),
    ("another zip", "zip", lambda p: _zip(p, "readme.txt")),
    ("text", "unknown", lambda p: p.write_text("hello, world")),
    ("one byte", "unknown", lambda p: p.write_bytes(b"\x08")),
    ("zeros", "unknown", lambda p: p.write_bytes(bytes(100))),
    ("a Hugging Face folder", "huggingface", lambda p: _folder(p, "config.json")),
    ("our own folder", "converted", lambda p: _folder(p, "moeify.json", "config.json")),
    ("an empty folder", "folder", lambda p: _folder(p)),
]


@pytest.mark.parametrize("suffix", ["", ".pt", ".safetensors", ".onnx"])
@pytest.mark.parametrize(("kind", "make"), [case[1:] for case in KINDS], ids=[case[0] for case in KINDS])
def test_the_content_decides_whatever_the_suffix_says(
    kind: str, make: Callable[[Path], object], suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"model{suffix}"
    make(path)
    assert sniff(path) == kind


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda p: None, "no such file or folder", id="missing"),
        pytest.param(lambda p: p.write_bytes(b""), "empty file", id="empty"),
        pytest.param(lambda p: p.write_bytes(b"PK\x03\x04 and no more"), "damaged or truncated zip", id="half a zip"),
    ],
)
def test_what_cannot_be_told_is_one_line(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    make(path)
    with pytest.raises(InputError, match=message) as caught:
        sniff(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
