"""Holds a batch against an example of the model's inputs: names, positions, dtypes, shapes, values."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from moeify.data.data_set import batch_tensors
from moeify.errors import InputError
from moeify.ir.model_graph import Batch

#: The inputs that hold token ids.
ID_NAMES = ("input_ids", "decoder_input_ids")


def fit_to(example: Batch | None, input_names: Sequence[str], vocabulary: int | None, where: str) -> Callable[[Batch], Batch]:
    """A function that gives each batch the form of the example (or leaves it, without one) and checks its values.

    input_names: the names of positional inputs, in order. vocabulary: ids must be below it. It raises InputError.
    """

    def fit(batch: Batch) -> Batch:
        fitted = batch if example is None else _like(batch, example, input_names, where)
        check_values(fitted, input_names, vocabulary, where)
        return fitted

    return fit


def check_values(batch: Batch, input_names: Sequence[str], vocabulary: int | None, where: str) -> None:
    """Raises InputError for NaN or positive infinity in floats, and for token ids outside the vocabulary."""
    for key, tensor in batch_tensors(batch).items():
        name = input_names[int(key)] if isinstance(batch, tuple) and int(key) < len(input_names) else key
        if tensor.is_floating_point() and bool((tensor.isnan() | tensor.isposinf()).any()):
            raise InputError(f"{where}: {_called(name)} holds NaN or infinite values; clean the data")
        if name in ID_NAMES and tensor.numel() and not tensor.is_floating_point():
            low, high = (int(value) for value in tensor.aminmax())
            if low < 0 or (vocabulary is not None and high >= vocabulary):
                bound = "at least 0" if low < 0 else f"below {vocabulary} (the model's vocabulary)"
                raise InputError(
                    f"{where}: {_called(name)} holds the token id {low if low < 0 else high}, ids must be {bound}; "
                    "was another model's tokenizer used?"
                )


def _like(batch: Batch, example: Batch, names: Sequence[str], where: str) -> Batch:
    wanted = batch_tensors(example)
    given = _renamed(batch, example, wanted, names)
    if set(given) != set(wanted):
        label = "positions" if isinstance(example, tuple) else "names"
        raise InputError(f"{where}: the model's input {label} are {_listed(wanted)}; found {_listed(given)}")
    tensors = {name: _fitted(given[name], like, name, where) for name, like in wanted.items()}
    if isinstance(example, tuple):
        return tuple(tensors.get(str(i), value) for i, value in enumerate(example))
    return {name: tensors.get(name, value) for name, value in example.items()}


def _renamed(batch: Batch, example: Batch, wanted: dict[str, Tensor], names: Sequence[str]) -> dict[str, Any]:
    """The batch's values under the example's keys, as far as they have a counterpart there."""
    given = batch if isinstance(batch, dict) else {str(i): value for i, value in enumerate(batch)}
    constants = dict(example) if isinstance(example, dict) else {str(i): value for i, value in enumerate(example)}
    given = {name: value for name, value in given.items() if isinstance(value, Tensor) or name not in constants}
    if set(given) == set(wanted):
        return given
    positions = {name: str(i) for i, name in enumerate(names)}
    if isinstance(example, tuple):
        numbered = {name: positions.get(name, re.sub(r"^arr_(?=\d+$)", "", name)) for name in given}
    elif isinstance(batch, tuple) or all(re.fullmatch(r"arr_\d+", name) for name in given):
        numbered = dict(zip(given, wanted)) if len(given) <= len(wanted) else {}
    else:
        return given
    renamed = {numbered.get(name, name): value for name, value in given.items()}
    if len(renamed) == len(wanted) == 1:  # one tensor for one input: its name does not matter where inputs have no names
        return {next(iter(wanted)): next(iter(renamed.values()))}
    return renamed


def _fitted(value: Any, like: Tensor, name: str, where: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise InputError(f"{where}: {_called(name)} must be a tensor, found {type(value).__name__}")
    if _kind(value) != _kind(like):
        raise InputError(f"{where}: {_called(name)} must hold {_kind(like)} ({like.dtype}), found {value.dtype}")
    if value.ndim != like.ndim or _trailing(value) != _trailing(like):
        free = ["rows", *("any" if size is None else str(size) for size in _trailing(like))]
        raise InputError(f"{where}: {_called(name)} must have the shape [{', '.join(free)}], found {list(value.shape)}")
    return value.to(like.dtype)


def _trailing(tensor: Tensor) -> list[int | None]:
    """The dimensions behind the rows that must be equal; None: free (the sequence of ids, masks and embeddings)."""
    sizes: list[int | None] = list(tensor.shape[1:])
    if not tensor.is_floating_point():
        return [None] * len(sizes)
    if len(sizes) == 2:
        sizes[0] = None
    return sizes


def _kind(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        return "floats"
    return "complex numbers" if tensor.is_complex() else "integers"


def _called(name: str) -> str:
    return f"input {name}" if name.isdigit() else repr(name)


def _listed(names: dict[str, Any]) -> str:
    return ", ".join(names) or "none"
