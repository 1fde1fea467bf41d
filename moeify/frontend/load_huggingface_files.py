"""The files of a Hugging Face folder, looked into before transformers sees them, so that each fault has its own words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moeify.data.importable import one_line
from moeify.errors import InputError, did_you_mean
from moeify.frontend.load_checks import some
from moeify.frontend.load_safetensors import check_safetensors


def check_config(config: Mapping[str, Any], path: Path, transformers: Any) -> None:
    """Raises InputError for a config of a model that this transformers does not know, or of quantized weights."""
    kind = config.get("model_type")
    known = list(transformers.CONFIG_MAPPING.keys())
    if not isinstance(kind, str):
        raise InputError(f"{path / 'config.json'}: has no model_type; is it the config of a transformers model?")
    if kind not in known:
        if "auto_map" in config:
            raise InputError(
                f"{path}: model_type {kind!r} needs Python code of its own, which is not run; give a state_dict and a factory"
            )
        raise InputError(
            f"{path / 'config.json'}: model_type {kind!r} is unknown to transformers {transformers.__version__}; "
            f"{did_you_mean(kind, known) if _near(kind, known) else 'upgrade it, or give a state_dict and a factory'}"
        )
    if config.get("quantization_config"):
        raise InputError(f"{path}: holds quantized weights (quantization_config in config.json); dequantize the model first")


def _near(name: str, known: list[str]) -> bool:
    return did_you_mean(name, known).startswith("did you mean")


def weight_files(path: Path) -> tuple[Path, ...]:
    """The safetensors files, each looked into; with an index, that first. Raises InputError where they are not all there."""
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    if single.is_file():
        check_safetensors(single)
        return (single,)
    if index.is_file():
        return (index, *_shards(index))
    found = {file.name for file in path.iterdir()}
    if any(name.startswith("pytorch_model") and name.endswith((".bin", ".bin.index.json")) for name in found):
        raise InputError(
            f"{path}: has its weights in pytorch_model.bin only, a pickle, which is not loaded; save them as safetensors first "
            "(where you trust it: load it with transformers, then model.save_pretrained(FOLDER))"
        )
    raise InputError(f"{path}: has a config.json but no weights: model.safetensors is missing")


def _shards(index: Path) -> tuple[Path, ...]:
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(v, str) for v in listed.values()):
        raise InputError(f"{index}: has no weight_map from tensor names to files; copy or download it again")
    shards = []
    for name in sorted(set(listed.values())):
        shard = index.parent / name
        if Path(name).name != name or not _is_file(shard):
            raise InputError(f"{index}: names the file {name[:100]!r}, which is not in the folder; copy or download it again")
        absent = sorted({tensor for tensor, place in listed.items() if place == name} - set(check_safetensors(shard)))
        if absent:
            raise InputError(
                f"{index}: lists tensors of {name} that are not in it: {some(absent)}; copy or download both again"
            )
        shards.append(shard)
    return tuple(shards)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for the disk
        return False


def read_json(path: Path) -> dict[str, Any]:
    """A JSON table. Raises InputError where the file holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds a {type(found).__name__}, not a table of names and values")
    return found
