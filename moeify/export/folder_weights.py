"""A model's whole state_dict in safetensors files: each tensor once, tied names beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from moeify.errors import InputError, OutputError
from moeify.export.safetensors_file import write_safetensors
from moeify.export.weight_shards import SHARD, shards
from moeify.frontend.load_checks import some
from moeify.frontend.load_safetensors import read_safetensors


def write_weights(model: nn.Module, folder: Path, most: int | None = None) -> dict[str, str]:
    """Writes every tensor of the state_dict into the folder, straight from its memory, in files of `most` bytes (None: SHARD);
    returns alias -> stored name for tied ones. What lies in mapped files is let go once it is written.

    Raises OutputError for what safetensors cannot hold; OSError where the disk takes no more.
    """
    stored, aliases = _stored(model, folder.name)
    for name, tensors in shards(stored, SHARD if most is None else most).items():
        write_safetensors(tensors, folder / name)
    return aliases


def write_one_file(model: nn.Module, path: Path) -> None:
    """Writes every tensor of the state_dict, tied ones once. Raises as `write_weights`."""
    write_safetensors(_stored(model, path.name)[0], path)


def _stored(model: nn.Module, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors to write by name, alias -> stored name for tied ones)."""
    stored: dict[str, Tensor] = {}
    names: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    spans: dict[int, list[tuple[int, int]]] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor) or tensor.is_meta or tensor.is_sparse:
            raise OutputError(f"{where}: {name} of {type(model).__name__} is no tensor with values; it cannot be saved")
        first = names.setdefault(_place(tensor, name), name)
        if first != name:
            aliases[name] = first
        else:
            stored[name] = _apart(tensor.detach().contiguous(), spans)
    return stored, aliases


def load_weights(model: nn.Module, paths: Sequence[Path], aliases: Mapping[str, str], *, cast: bool) -> None:
    """Gives the model the tensors of the files, mapped from there rather than copied, and ties what was tied.

    cast: to the dtypes of the model; else they stay as they are in the file. Raises InputError unless every tensor of the
    files and of the model is accounted for.
    """
    where = paths[0] if len(paths) == 1 else paths[0].parent
    state = {name: tensor for path in paths for name, tensor in read_safetensors(path).items()}
    own = model.state_dict()
    for alias, name in aliases.items():
        if name not in state or alias in state:
            raise InputError(
                f"{where}: does not fit its manifest: {alias} is to be an alias of {name}; convert the model again"
            )
        state[alias] = state[name]
    faults = [f"missing: {some(own.keys() - state.keys())}"] if own.keys() - state.keys() else []
    faults += [f"unexpected: {some(state.keys() - own.keys())}"] if state.keys() - own.keys() else []
    unfit = [name for name in own if name in state and state[name].shape != own[name].shape]
    faults += [f"of another shape: {some(unfit)}"] if unfit else []
    if faults:
        raise InputError(
            f"{where}: does not fit the {type(model).__name__} ({'; '.join(faults)}); is it the model it was made from?"
        )
    if cast:
        state = {name: value.to(own[name].dtype) for name, value in state.items()}
    model.load_state_dict(state, assign=True)
    for alias, name in aliases.items():
        _tie(model, alias, name)


def _place(tensor: Tensor, name: str) -> tuple[Any, ...]:
    """Equal for two names of one tensor."""
    return (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if tensor.numel() else (name,)


def _apart(tensor: Tensor, spans: dict[int, list[tuple[int, int]]]) -> Tensor:
    """The tensor; a copy where it overlaps an earlier one in part, which safetensors does not hold."""
    start = tensor.data_ptr()
    end = start + tensor.numel() * tensor.element_size()
    taken = spans.setdefault(tensor.untyped_storage().data_ptr(), [])
    if any(start < other_end and other < end for other, other_end in taken):
        return tensor.clone()
    taken.append((start, end))
    return tensor


def _tie(model: nn.Module, alias: str, name: str) -> None:
    """Makes both names one parameter or buffer again."""
    (owner, leaf), (kept_owner, kept_leaf) = _owner(model, alias), _owner(model, name)
    for register in ("_parameters", "_buffers"):
        if leaf in getattr(owner, register) and kept_leaf in getattr(kept_owner, register):
            getattr(owner, register)[leaf] = getattr(kept_owner, register)[kept_leaf]


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf
