"""Files by name, good ones and bad: a test names what it needs, and that is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

import zoo_huggingface
from cli.tiny_models import HIDDEN, deep_stack, stack

_RECIPE = """
[[pass]]
name = "find-feed-forward"

[[pass]]
name = "each-layer"
pass = [{ name = "cluster-neurons", experts = 4 }, { name = "split-experts" }, { name = "insert-router", top_k = 2 }]
"""


def state(change: Callable[[dict[str, Tensor]], None] | None = None) -> dict[str, Tensor]:
    values: dict[str, Tensor] = stack().state_dict()
    if change is not None:
        change(values)
    return values


def _with_nan(values: dict[str, Tensor]) -> None:
    values["1.down.weight"][2, 3] = float("nan")


def _with_other_shape(values: dict[str, Tensor]) -> None:
    values["0.up.weight"] = torch.zeros(3, HIDDEN)


def _without_one(values: dict[str, Tensor]) -> None:
    del values["0.up.weight"]


def _saved(make: Callable[[], Any]) -> Callable[[Path], None]:
    return lambda path: torch.save(make(), path)


def _cut(path: Path) -> None:
    torch.save(state(), path)
    path.write_bytes(path.read_bytes()[:-500])


def _flipped(path: Path) -> None:
    torch.save(state(), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def _text(content: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(content, "utf-8")


def _bytes(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


def _llama(path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = zoo_huggingface.build("llama")
        model.save_pretrained(path)


def _broken_llama(path: Path) -> None:
    _llama(path)
    (path / "config.json").write_text('{"model_type": "llama",', "utf-8")


def _cut_llama(path: Path) -> None:
    _llama(path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def _old_folder(path: Path) -> None:
    path.mkdir()
    (path / "precious.txt").write_text("keep me", "utf-8")


#: Name -> writes it.
FILES: Mapping[str, Callable[[Path], Any]] = MappingProxyType(
    {
        "model.pt": _saved(state),
        "deep.pt": _saved(lambda: deep_stack().state_dict()),
        "nan.pt": _saved(lambda: state(_with_nan)),
        "shape.pt": _saved(lambda: state(_with_other_shape)),
        "missing.pt": _saved(lambda: state(_without_one)),
        "linear.pt": _saved(lambda: nn.Sequential(nn.Linear(HIDDEN, HIDDEN)).state_dict()),
        "module.pt": _saved(stack),
        "list.pt": _saved(lambda: [1, 2, 3]),
        "empty.pt": _bytes(b""),
        "garbage.pt": _bytes(bytes(range(256)) * 20),
        "cut.pt": _cut,
        "flipped.pt": _flipped,
        "garbage.gguf": _bytes(b"GGUF" + bytes(200)),
        "garbage.safetensors": _bytes((50).to_bytes(8, "little") + b'{"a": ' + bytes(100)),
        "garbage.onnx": _bytes(b"\x00\x01\x02" * 50),
        "empty.onnx": _bytes(b""),
        "llama": _llama,
        "broken-llama": _broken_llama,
        "cut-llama": _cut_llama,
        "empty-folder": Path.mkdir,
        "old-folder": _old_folder,
        "a-file": _text("a file"),
        "text.txt": _text("The quick brown fox jumps over the lazy dog.\n" * 20),
        "empty.txt": _text(""),
        "garbage.bin": _bytes(bytes(range(256)) * 20),
        "broken.jsonl": _text('{"text": "good"}\n{"text": \n'),
        "rows.pt": _saved(lambda: torch.randn(64, HIDDEN, generator=torch.Generator().manual_seed(2))),
        "wide-rows.pt": _saved(lambda: torch.zeros(64, HIDDEN + 1)),
        "nan-rows.pt": _saved(lambda: torch.full((64, HIDDEN), float("nan"))),
        "good.toml": _text(_RECIPE),
        "broken.toml": _text("[[pass]\nname = "),
        "empty.toml": _text(""),
        "key.toml": _text('title = "x"\n' + _RECIPE),
        "pass.toml": _text(_RECIPE.replace("split-experts", "split-expert")),
        "option.toml": _text(_RECIPE.replace("experts = 4", "expert = 4")),
        "type.toml": _text(_RECIPE.replace("experts = 4", 'experts = "four"')),
        "strategy.toml": _text(_RECIPE.replace("experts = 4", 'by = { kind = "randm" }')),
        "order.toml": _text(
            _RECIPE.replace('{ name = "split-experts" }, { name = "insert-router", top_k = 2 }',
                            '{ name = "insert-router", top_k = 2 }, { name = "split-experts" }')
        ),
        "no-find.toml": _text(_RECIPE.partition("\n\n")[2]),
    }
)  # fmt: skip


def write_files(names: Iterable[str], folder: Path, kept: Path) -> None:
    """Writes those of the names that are in the table into the folder; `kept` holds what was written before."""
    for name in names:
        if name not in FILES or (folder / name).exists():
            continue
        if not (kept / name).exists():
            FILES[name](kept / name)
        if (kept / name).is_dir():
            shutil.copytree(kept / name, folder / name)
        else:
            shutil.copyfile(kept / name, folder / name)
