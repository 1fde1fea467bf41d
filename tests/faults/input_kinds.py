"""Every kind of input, good and whole; adding one is adding a line to KINDS."""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

import zoo_huggingface
from cli.small_files import FILES, state
from cli.tiny_models import HIDDEN, NEURONS, TINY, example, stack
from data.small_tokenizers import TEXT, byte_level
from frontend.tiny_adapter import adapt
from frontend.tiny_gguf import write_gguf
from moeify import api
from onnx_files import dense_onnx

Places = Callable[[bytes], Iterable[int]]


@dataclass(frozen=True)
class InputKind:
    """An input, and a command that reads it.

    name: the file or folder as the command names it; write: writes it there. file: what is damaged in it, where it is a folder.
    cut: can a cut "always" be told, or only "perhaps"? guarded: the bytes in which a flipped bit can be told.
    """

    caption: str
    name: str
    write: Callable[[Path], Any]
    line: str
    file: str = ""
    cut: Literal["always", "perhaps"] = "always"
    guarded: Places | None = None

    @property
    def damaged(self) -> str:
        return f"{self.name}/{self.file}" if self.file else self.name


def zip_entries(content: bytes) -> Iterable[int]:
    """What the CRCs of a zip guard."""
    with zipfile.ZipFile(BytesIO(content)) as archive:
        for entry in archive.infolist():
            name, extra = struct.unpack_from("<HH", content, entry.header_offset + 26)
            start = entry.header_offset + 30 + name + extra
            yield from range(start, start + entry.compress_size)


def safetensors_header(content: bytes) -> Iterable[int]:
    return range(8 + int.from_bytes(content[:8], "little"))


def gguf_header(content: bytes) -> Iterable[int]:
    """Magic number, version and counts; size, type and place of each tensor."""
    yield from range(24)
    for name in re.finditer(rb"[a-z0-9_.]+\.weight", content):
        (dims,) = struct.unpack_from("<I", content, name.end())
        yield from range(name.end(), name.end() + 4 + 8 * dims + 4 + 8)


def everything(content: bytes) -> Iterable[int]:
    return range(len(content))


def _llama(path: Path, shards: str = "1GB", **config: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = zoo_huggingface.build("llama")
        type(model)(type(model.config)(**{**model.config.to_dict(), **config})).save_pretrained(path, max_shard_size=shards)


def _shards(path: Path) -> None:
    _llama(path, "8KB")


def _adapter(path: Path) -> None:
    _llama(path.with_name("base-of-adapter"))
    adapt(path.with_name("base-of-adapter"), path)


def _moe(path: Path) -> None:
    """The tiny model, converted."""
    api.convert(stack().eval(), path, experts=4, top_k=2, example=example())


def _moe_of_text(path: Path) -> None:
    """A Llama with a tokenizer, converted."""
    _llama(path.with_name("dense-of-text"), vocab_size=400)
    byte_level().save_pretrained(path.with_name("dense-of-text"))
    api.convert(path.with_name("dense-of-text"), path, experts=4, top_k=2)


def _onnx(path: Path) -> None:
    _moe(path.with_name("for-onnx"))
    api.export(path.with_name("for-onnx"), path, factory=stack, example=example())


def _rows() -> torch.Tensor:
    return torch.randn(64, 8, generator=torch.Generator().manual_seed(2))


def _lines(path: Path) -> None:
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in TEXT.splitlines()[:40]), "utf-8")


def _tensors(make: Callable[[], dict[str, torch.Tensor]]) -> Callable[[Path], Any]:
    return lambda path: save_file(make(), path)


def _saved(make: Callable[[], Any]) -> Callable[[Path], Any]:
    return lambda path: torch.save(make(), path)


def _old(value: Any) -> Callable[[Path], Any]:
    return lambda path: torch.save(value(), path, _use_new_zipfile_serialization=False)


CONVERT = f"-o new {TINY} --experts 4"
DATA = f"evaluate moe {TINY} --data"
EXAMPLE = "convert model.pt -o new --factory cli.tiny_models:stack --experts 4 --example"
TEXTS = "evaluate moe-of-text --data"


def _sequence() -> nn.Module:
    return nn.Sequential(nn.Linear(HIDDEN, NEURONS), nn.ReLU(), nn.Linear(NEURONS, HIDDEN))


def _exported(path: Path) -> None:
    with torch.no_grad():
        torch.export.save(torch.export.export(stack().eval(), example(), strict=False), path)


KINDS = (
    InputKind("a Hugging Face config", "llama", _llama, "convert llama -o new --experts 4", "config.json"),
    InputKind("Hugging Face weights", "llama", _llama, "convert llama -o new --experts 4", "model.safetensors"),
    InputKind("an index of shards", "shards", _shards, "convert shards -o new --experts 4",
              "model.safetensors.index.json"),
    InputKind("a shard", "shards", _shards, "convert shards -o new --experts 4",
              "model-00002-of-00005.safetensors"),
    InputKind("the config of an adapter", "adapter", _adapter, "convert adapter -o new --experts 4", "adapter_config.json"),
    InputKind("the weights of an adapter", "adapter", _adapter, "convert adapter -o new --experts 4",
              "adapter_model.safetensors", guarded=safetensors_header),
    InputKind("a GGUF file", "tiny.gguf", write_gguf, "convert tiny.gguf -o new --experts 4", guarded=gguf_header),
    InputKind("a state_dict", "model.pt", FILES["model.pt"], f"convert model.pt {CONVERT}", guarded=zip_entries),
    InputKind("a state_dict of before torch 1.6", "old.pt", _old(state), f"convert old.pt {CONVERT}"),
    InputKind("a state_dict in safetensors", "m.safetensors", _tensors(state), f"convert m.safetensors {CONVERT}",
              guarded=safetensors_header),
    InputKind("a pickled module", "module.pt", _saved(_sequence), "convert module.pt -o new --experts 4", guarded=zip_entries),
    InputKind("an exported program", "m.pt2", _exported, "convert m.pt2 -o new --experts 4", guarded=zip_entries),
    InputKind("the manifest of a converted folder", "moe", _moe, f"evaluate moe --data rows.pt {TINY}", "moeify.json"),
    InputKind("the weights of a converted folder", "moe", _moe, f"evaluate moe --data rows.pt {TINY}", "moeify.safetensors",
              guarded=everything),
    InputKind("the recipe of a converted folder", "moe", _moe, f"evaluate moe --data rows.pt {TINY}", "recipe.toml",
              guarded=everything),
    InputKind("an ONNX file", "model.onnx", _onnx, "inspect model.onnx", cut="perhaps"),
    InputKind("a dense ONNX file", "dense.onnx", dense_onnx, "convert dense.onnx -o new --experts 4", cut="perhaps"),
    InputKind("rows in a .pt", "rows.pt", FILES["rows.pt"], f"{DATA} rows.pt", guarded=zip_entries),
    InputKind("rows in an old .pt", "old-rows.pt", _old(_rows), f"{DATA} old-rows.pt"),
    InputKind("rows in an .npz", "rows.npz", lambda p: np.savez(p, _rows().numpy()), f"{DATA} rows.npz", guarded=zip_entries),
    InputKind("rows in an .npy", "rows.npy", lambda p: np.save(p, _rows().numpy()), f"{DATA} rows.npy"),
    InputKind("rows in safetensors", "rows.safetensors", _tensors(lambda: {"input": _rows()}), f"{DATA} rows.safetensors"),
    InputKind("a text", "some.txt", lambda p: p.write_text(TEXT[:2000], "utf-8"), f"{TEXTS} some.txt", cut="perhaps"),
    InputKind("lines of JSON", "some.jsonl", _lines, f"{TEXTS} some.jsonl", cut="perhaps"),
    InputKind("an example in a .pt", "inputs.pt", _saved(example), f"{EXAMPLE} inputs.pt", guarded=zip_entries),
    InputKind("an example in an .npz", "inputs.npz", lambda p: np.savez(p, input=example()[0].numpy()), f"{EXAMPLE} inputs.npz",
              guarded=zip_entries),
    InputKind("an example in safetensors", "inputs.safetensors", _tensors(lambda: {"input": example()[0]}),
              f"{EXAMPLE} inputs.safetensors"),
    InputKind("a recipe", "good.toml", FILES["good.toml"], f"convert model.pt {CONVERT} --recipe good.toml", cut="perhaps"),
)  # fmt: skip

#: What the commands read besides.
BESIDES: dict[str, Callable[[Path], Any]] = {
    "model.pt": FILES["model.pt"],
    "rows.pt": FILES["rows.pt"],
    "moe": _moe,
    "moe-of-text": _moe_of_text,
}
