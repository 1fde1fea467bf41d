"""Every reader of files, with a whole file and the ways in which it is damaged; adding one is adding a line."""

from __future__ import annotations

import json
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from cli.small_files import FILES, state
from cli.tiny_models import example, stack
from data.small_tokenizers import TEXT, byte_level
from frontend.tiny_gguf import write_gguf
from fuzz.mutations import damaged, json_of, safetensors_of, toml_of, zip_of
from moeify import api
from moeify.data import open_data
from moeify.export.folder import load_folder
from moeify.export.manifest import read_manifest
from moeify.export.onnx.inspecting import onnx_layers
from moeify.frontend.load_example import read_example
from moeify.frontend.load_gguf_header import read_gguf_header
from moeify.frontend.load_huggingface_files import weight_files
from moeify.frontend.load_model import load_model
from moeify.frontend.load_safetensors import read_safetensors, safetensors_contents
from moeify.frontend.load_saved import read_saved
from moeify.frontend.load_state_dict import state_dict_of
from moeify.frontend.onnx.load import load_onnx
from moeify.frontend.sniff import sniff
from moeify.pipeline.recipe import load_recipe, presets
from onnx_blocks import moe_layer
from onnx_files import dense_onnx

Bytes = st.SearchStrategy[bytes]


@dataclass(frozen=True)
class Reader:
    """name: of the file. whole: a file that is read well. damage: more ways than those of its bytes. head: where its structure
    ends. beside: writes what stands in its folder. slowness: how much longer it takes than the others."""

    name: str
    whole: Callable[[], bytes]
    read: Callable[[Path], Any]
    damage: Callable[[bytes], Bytes] = damaged
    head: int = 1 << 62
    beside: Callable[[Path], Any] = lambda folder: None
    slowness: int = 1

    def files(self) -> Bytes:
        """Damaged files, and some that never were whole."""
        whole = self.whole()
        return (
            damaged(whole, self.head)
            | self.damage(whole)
            | st.binary(max_size=200)
            | st.binary(max_size=60).map(whole[:20].__add__)
        )


def _saved(value: Any, old: bool = False) -> Callable[[], bytes]:
    return _written(lambda file: torch.save(value, file, _use_new_zipfile_serialization=not old))


def _written(write: Callable[[Any], Any]) -> Callable[[], bytes]:
    def content() -> bytes:
        file = BytesIO()
        write(file)
        return file.getvalue()

    return cache(content)


@cache
def _gguf() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_gguf(Path(folder) / "m.gguf").read_bytes()


def _in_json(whole: bytes) -> Bytes:
    return json_of(json.loads(whole))


def _config() -> bytes:
    return _file(_llama, "config.json")


def _manifest() -> bytes:
    return _file(_moe, "moeify.json")


def _moe(folder: Path) -> None:
    api.convert(stack().eval(), folder / "moe", experts=4, top_k=2, example=example())
    for file in (folder / "moe").iterdir():
        file.rename(folder / file.name)


def _llama(folder: Path) -> None:
    FILES["llama"](folder / "llama")
    for file in (folder / "llama").iterdir():
        file.rename(folder / file.name)


@cache
def _file(write: Callable[[Path], Any], name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return (Path(folder) / name).read_bytes()


def _shards(folder: Path) -> None:
    for name, tensor in (("m.safetensors", "a"), ("n.safetensors", "b")):
        (folder / name).write_bytes(save({tensor: torch.ones(1)}))


@cache
def _onnx() -> bytes:
    from moeify.export.onnx.exporting import export_onnx

    with tempfile.TemporaryDirectory() as folder:
        export_onnx(moe_layer(), (torch.zeros(6, moe_layer().config.hidden),), Path(folder) / "m.onnx")
        return (Path(folder) / "m.onnx").read_bytes()


@cache
def _dense_onnx() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return dense_onnx(Path(folder) / "d.onnx").read_bytes()


def _data(path: Path) -> None:
    for _, _batch in zip(range(50), open_data(path, tokenizer=byte_level(), vocabulary=400)):
        pass


def _state_dict(path: Path) -> None:
    kind = sniff(path)
    if kind == "safetensors":
        state_dict_of(read_safetensors(path), path)
    elif kind in ("torch", "pickle"):
        found = read_saved(path, kind)
        if not isinstance(found, nn.Module):
            state_dict_of(found, path)


def _recipe(path: Path) -> None:
    load_recipe(path).build(api.registry())


def _folder(path: Path) -> None:
    load_model(path.parent)


def _safetensors(path: Path) -> None:
    safetensors_contents([path])
    read_safetensors(path)


def _exported() -> bytes:
    with torch.no_grad():
        program = torch.export.export(stack().eval(), example(), strict=False)
    return _written(lambda file: torch.export.save(program, file))()


ROWS = {"input": torch.arange(24.0).reshape(4, 6), "input_ids": torch.arange(8).reshape(4, 2)}
ARRAYS: dict[str, Any] = {name: value.numpy() for name, value in ROWS.items()}
INDEX = {"metadata": {"total_size": 8}, "weight_map": {"a": "m.safetensors", "b": "n.safetensors"}}
RECIPE = presets()["markers"].explicit(api.registry()).to_toml()
LINES = "".join(json.dumps({"text": line, "n": 1}) + "\n" for line in TEXT.splitlines()[:6])

READERS = {
    "manifest": Reader("moeify.json", _manifest, lambda p: read_manifest(p.parent),
                       _in_json),
    "recipe": Reader("r.toml", RECIPE.encode, _recipe, lambda whole: toml_of(tomllib.loads(whole.decode()))),
    "index of shards": Reader("model.safetensors.index.json", json.dumps(INDEX).encode, lambda p: weight_files(p.parent),
                              _in_json, beside=_shards),
    "safetensors": Reader("m.safetensors", lambda: save(ROWS), _safetensors, safetensors_of),
    "GGUF header": Reader("m.gguf", _gguf, lambda p: read_gguf_header(p, gguf.GGML_QUANT_SIZES), head=1500),
    "state_dict": Reader("m.pt", _saved(state()), _state_dict, zip_of),
    "old state_dict": Reader("m.pt", _saved(state(), old=True), _state_dict, head=600),
    "a pickled module": Reader("m.pt", _saved(nn.Sequential(nn.Linear(4, 8), nn.ReLU())), load_model, zip_of, slowness=4),
    "an exported program": Reader("m.pt2", _exported, load_model, zip_of, slowness=4),
    "text": Reader("d.txt", TEXT[:600].encode, _data),
    "lines": Reader("d.jsonl", LINES.encode, _data, lambda whole: json_of({"text": "a b"})),
    "rows": Reader("d.pt", _saved(ROWS), _data, zip_of),
    "old rows": Reader("d.pt", _saved(ROWS, old=True), _data, head=600),
    "arrays": Reader("d.npz", _written(lambda f: np.savez(f, **ARRAYS)), _data, zip_of),
    "folded arrays": Reader("d.npz", _written(lambda f: np.savez_compressed(f, **ARRAYS)), _data, zip_of),
    "array": Reader("d.npy", _written(lambda f: np.save(f, ARRAYS["input"])), _data, head=128),
    "safetensors rows": Reader("d.safetensors", lambda: save(ROWS), _data, safetensors_of),
    "an example": Reader("e.npz", _written(lambda f: np.savez(f, **ARRAYS)), read_example, zip_of),
    "a converted folder": Reader("moeify.json", _manifest, lambda p: load_folder(p.parent, factory=stack),
                                 _in_json, beside=_moe, slowness=3),
    "a Hugging Face config": Reader("config.json", _config, _folder, _in_json, beside=_llama, slowness=4),
    "Hugging Face weights": Reader("model.safetensors", lambda: _file(_llama, "model.safetensors"), _folder,
                                   safetensors_of, head=1500, beside=_llama, slowness=4),
    "a GGUF file": Reader("m.gguf", _gguf, load_model, head=1500, slowness=4),
    "an ONNX file": Reader("m.onnx", _onnx, onnx_layers),
    "a dense ONNX file": Reader("d.onnx", _dense_onnx, lambda p: load_onnx(p, torch.float32), head=1500, slowness=2),
}  # fmt: skip
