"""Tensors in a file -> batches of rows. Nothing of these files is ever executed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moeify.data.data_set import batch_tensors
from moeify.data.importable import one_line
from moeify.data.sniff import FileKind
from moeify.data.zip_sums import check_sums
from moeify.errors import InputError
from moeify.ir.model_graph import Batch


def read_tensors(path: Path, kind: FileKind) -> Batch:
    """All tensors of the file, by name or position, the first dimension of each being the rows.

    .pt files hold a dict of tensors, a tuple or list of tensors, or one tensor, and are memory-mapped.
    Raises InputError for a damaged file, Python objects in it, no tensor, or tensors with unequal numbers of rows.
    """
    try:
        value = _READERS[kind](path)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: {_reason(kind, error)}") from error
    batch = _tensors_only(value, path)
    rows = {name: (tensor.shape[0] if tensor.ndim else None) for name, tensor in batch_tensors(batch).items()}
    if not rows:
        raise InputError(f"{path}: holds no tensor")
    if None in rows.values():
        scalar = next(name for name, count in rows.items() if count is None)
        raise InputError(f"{path}: {scalar!r} is a single number; the first dimension of each tensor must be the rows")
    if len(set(rows.values())) > 1:
        sizes = ", ".join(f"{name} {count}" for name, count in rows.items())
        raise InputError(f"{path}: the tensors have unequal numbers of rows: {sizes}")
    if not all(rows.values()):
        raise InputError(f"{path}: holds no row; give data with at least one")
    return batch


def row_batches(tensors: Batch, batch: int) -> Iterator[Batch]:
    """The same tensors, that many rows at a time."""
    total = next(iter(batch_tensors(tensors).values())).shape[0]
    for start in range(0, total, batch):
        if isinstance(tensors, dict):
            yield {name: tensor[start : start + batch] for name, tensor in tensors.items()}
        else:
            yield tuple(tensor[start : start + batch] for tensor in tensors)


def _read_pt(path: Path) -> Any:
    with path.open("rb") as file:
        mapped = file.read(2) == b"PK"
    if mapped:
        check_sums(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's advice for pickles that it did not write
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _read_npz(path: Path) -> dict[str, Tensor]:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        return {name: _from_array(arrays[name], name, path) for name in arrays.files}


def _read_npy(path: Path) -> Tensor:
    import numpy as np

    return _from_array(np.load(path, allow_pickle=False), "the array", path)


def _from_array(array: Any, name: str, path: Path) -> Tensor:
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise InputError(f"{path}: {name} holds {array.dtype}, which is no tensor; store numbers") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


_READERS: dict[FileKind, Any] = {"pt": _read_pt, "npz": _read_npz, "npy": _read_npy, "safetensors": _read_safetensors}


def _reason(kind: FileKind, error: Exception) -> str:
    text = str(error)
    if kind == "pt" and "weights_only" in text.lower().replace(" ", "_"):
        return "holds Python objects, which are never executed; save tensors alone: torch.save({'input_ids': ids}, path)"
    if kind in ("npz", "npy") and "allow_pickle" in text:
        return "holds Python objects, which are never executed; save arrays of numbers"
    return f"is damaged or cut short ({one_line(error, 120)}); write it again"


def _tensors_only(value: Any, path: Path) -> Batch:
    if isinstance(value, Tensor):
        return (value,)
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple | list) else ()
    for name, item in pairs:
        if not isinstance(item, Tensor):
            raise InputError(f"{path}: entry {name!r} must be a tensor, found {type(item).__name__}")
    if isinstance(value, dict):
        return {str(name): item for name, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(value)
    raise InputError(f"{path}: must hold a dict of tensors, a tuple of tensors or one tensor, found {type(value).__name__}")
