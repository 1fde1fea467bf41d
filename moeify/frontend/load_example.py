"""One batch of inputs to trace a model with, as the user gives it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moeify.data.importable import importable, is_importable_name, one_line
from moeify.errors import InputError
from moeify.frontend.load_safetensors import read_safetensors
from moeify.frontend.load_torch_file import read_torch_file
from moeify.frontend.sniff import sniff
from moeify.ir.model_graph import Batch

#: In a converted folder's source/: inputs that were assumed, so that the folder needs none.
ASSUMED = "example.pt"

_HINT = "give a tuple of arguments or a dict of keyword arguments"


def read_example(source: str | Path | Batch, device: str = "cpu") -> Batch:
    """A batch in memory, of a file (.pt, .npz, .safetensors: keyword arguments by name), or of `pkg.mod:callable`.

    Raises InputError for what cannot be read or is no batch.
    """
    if isinstance(source, str) and is_importable_name(source) and not Path(source).exists():
        found = importable(source, "the example")
        try:
            found = found() if callable(found) else found
        except (Exception, SystemExit) as error:
            raise InputError(f"example {source}: failed: {one_line(error)}") from error
        name = source
    elif isinstance(source, str | Path):
        found, name = _read_file(Path(source)), str(source)
    else:
        found, name = source, "example"
    return _to_device(_batch(found, name), device)


def _read_file(path: Path) -> Any:
    kind = sniff(path)
    if kind == "safetensors":
        return read_safetensors(path)
    if kind in ("torch", "pickle"):
        return read_torch_file(path, kind)
    if kind == "zip" and path.suffix == ".npz":
        return _read_npz(path)
    raise InputError(f"{path}: is no example of inputs; give a .pt, .npz or .safetensors file")


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
    except Exception as error:  # a damaged archive raises errors of zipfile, zlib and NumPy
        raise InputError(f"{path}: cannot be read as arrays: {one_line(error)}") from error


def _batch(found: Any, name: str) -> Batch:
    if isinstance(found, list | tuple) and found:
        return tuple(found)
    if isinstance(found, dict) and found and all(isinstance(key, str) for key in found):
        return dict(found)
    if isinstance(found, Tensor):
        return (found,)
    empty = isinstance(found, list | tuple | dict) and not found
    described = "an empty batch" if empty else f"an object of type {type(found).__name__}"
    raise InputError(f"{name}: is {described}, not a batch; {_HINT}")


def _to_device(batch: Batch, device: str) -> Batch:
    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    if isinstance(batch, dict):
        return {name: move(value) for name, value in batch.items()}
    return tuple(move(value) for value in batch)
