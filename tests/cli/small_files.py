"""Files by name, good ones and bad: a test names what it needs, and that is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import moeify
import zoo_huggingface
from cli.tiny_models import HIDDEN, NEURONS, deep_stack, example, stack, wide_stack
from data.small_tokenizers import byte_level
from frontend.exported_traps import TRAPS, write_archive
from frontend.pickle_traps import save_pickle
from frontend.tiny_adapter import adapt

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


def _writer(path: Path) -> None:
    """A decoder with a tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tiny: Any = zoo_huggingface.build("llama")
        model: Any = type(tiny)(type(tiny.config)(**{**tiny.config.to_dict(), "vocab_size": 400, "eos_token_id": 0}))
    model.save_pretrained(path)
    byte_level().save_pretrained(path)


def _nan_llama(path: Path) -> None:
    _llama(path)
    _changed(path / "model.safetensors", lambda name, value: value * float("nan") if name.endswith("up_proj.weight") else value)


def _wide_llama(path: Path) -> None:
    """Every tensor twice as long."""
    _llama(path)
    _changed(path / "model.safetensors", lambda _, value: torch.cat((value, value)))


def _changed(path: Path, change: Callable[[str, Tensor], Tensor]) -> None:
    save_file({name: change(name, value) for name, value in load_file(path).items()}, path, {"format": "pt"})


def _upcycled(path: Path) -> None:
    moeify.convert(stack(), path, recipe="upcycle", experts=2, example=example())


def _broken_llama(path: Path) -> None:
    _llama(path)
    (path / "config.json").write_text('{"model_type": "llama",', "utf-8")


def _cut_llama(path: Path) -> None:
    _llama(path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def _layers() -> nn.Module:
    """A model of torch.nn's classes alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(HIDDEN, 2, 32, batch_first=True)
        return nn.Sequential(nn.Embedding(20, HIDDEN), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


def _cut_program(path: Path) -> None:
    write_archive(path)
    path.write_bytes(path.read_bytes()[:-500])


def _adapter(path: Path) -> None:
    """A LoRA adapter of a model that is not on disk."""
    path.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "some/model", "task_type": "CAUSAL_LM", "r": 2}
    (path / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    save_file({"base_model.model.a.lora_A.weight": torch.zeros(2, 4)}, path / "adapter_model.safetensors")


def _nan_adapter(path: Path) -> None:
    """A LoRA adapter of a model in a folder of it, whose weights hold NaN."""
    path.mkdir()
    _nan_llama(path / "model")
    adapt(path / "model", path)
    config = json.loads((path / "adapter_config.json").read_text("utf-8"))
    (path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "model"}), "utf-8")


def _nan_module() -> nn.Module:
    """FFNs of torch.nn's classes alone, whose weights hold NaN."""
    model = nn.Sequential(*(nn.Sequential(nn.Linear(HIDDEN, NEURONS), nn.ReLU(), nn.Linear(NEURONS, HIDDEN)) for _ in range(2)))
    for parameter in model.parameters():
        nn.init.constant_(parameter, float("nan"))
    return model


def _nan_program(path: Path) -> None:
    torch.export.save(torch.export.export(_nan_module(), example()), path)


def _old_folder(path: Path) -> None:
    path.mkdir()
    (path / "precious.txt").write_text("keep me", "utf-8")


#: Name -> writes it.
FILES: Mapping[str, Callable[[Path], Any]] = MappingProxyType(
    {
        "model.pt": _saved(state),
        "deep.pt": _saved(lambda: deep_stack().state_dict()),
        "nan.pt": _saved(lambda: state(_with_nan)),
        "nan-module.pt": _saved(_nan_module),
        "nan.pt2": _nan_program,
        "nan-adapter": _nan_adapter,
        "shape.pt": _saved(lambda: state(_with_other_shape)),
        "missing.pt": _saved(lambda: state(_without_one)),
        "linear.pt": _saved(lambda: nn.Sequential(nn.Linear(HIDDEN, HIDDEN)).state_dict()),
        "module.pt": _saved(stack),
        "layers.pt": _saved(_layers),
        "two-inputs.pt": _saved(lambda: nn.Transformer(HIDDEN, 2, 1, 1, 32)),
        "gone.pt": lambda path: save_pickle(b"\x80\x02cno_such_module\nNet\n)\x81.", path),
        "moved.pt": lambda path: save_pickle(b"\x80\x02ccli.tiny_models\nNoBlock\n)\x81.", path),
        "list.pt": _saved(lambda: [1, 2, 3]),
        "program.pt2": write_archive,
        "pickled.pt2": lambda path: write_archive(path, TRAPS[0][1]),
        "calling.pt2": lambda path: write_archive(path, next(c[1] for c in TRAPS if c[0] == "an operator that is os.mkdir")),
        "cut.pt2": _cut_program,
        "empty.pt2": _bytes(b""),
        "garbage.pt2": _bytes(b"PK\x03\x04" + bytes(range(256)) * 20),
        "adapter": _adapter,
        "empty.pt": _bytes(b""),
        "garbage.pt": _bytes(bytes(range(256)) * 20),
        "cut.pt": _cut,
        "flipped.pt": _flipped,
        "garbage.gguf": _bytes(b"GGUF" + bytes(200)),
        "garbage.safetensors": _bytes((50).to_bytes(8, "little") + b'{"a": ' + bytes(100)),
        "garbage.onnx": _bytes(b"\x00\x01\x02" * 50),
        "empty.onnx": _bytes(b""),
        "llama": _llama,
        "writer": _writer,
        "broken-llama": _broken_llama,
        "cut-llama": _cut_llama,
        "empty-folder": Path.mkdir,
        "old-folder": _old_folder,
        "nan-llama": _nan_llama,
        "wide-llama": _wide_llama,
        "wide.pt": _saved(lambda: wide_stack().state_dict()),
        "upcycled": _upcycled,
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
        "type.toml": _text(_RECIPE.replace("experts = 4", "experts = [4]")),
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
