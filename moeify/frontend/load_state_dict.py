"""A state_dict (.pt, .pth, .safetensors) into the module that a factory builds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moeify.errors import InputError
from moeify.frontend.load_checks import some


def state_dict_of(found: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name, where that is what the file holds. Raises InputError where it holds something else."""
    if not isinstance(found, Mapping) or not found:
        raise InputError(f"{path}: holds {_described(found)}, not a state_dict; save model.state_dict()")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(f"{path}: {name!r} is {_described(value)}, not a tensor; save model.state_dict() alone")
    return dict(found)


def fill(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copies the state_dict into the module. Names and shapes must match; of tied weights one name is enough.

    Raises InputError that lists the first missing, unexpected and unfit tensors.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    present = {_place(own[name]) for name in state if name in own}
    missing = [name for name in own if name not in state and _place(own[name]) not in present]
    unexpected = [name for name in state if name not in own]
    unfit = [_unfit(name, value, own[name]) for name, value in state.items() if name in own and _differs(value, own[name])]
    unfit += _torn(state, own)
    faults = [
        f"{title}: {some(names)}"
        for title, names in (("missing", missing), ("unexpected", unexpected), ("unfit", unfit))
        if names
    ]
    if faults:
        raise InputError(
            f"{path}: does not fit the {type(model).__name__} of the factory ({'; '.join(faults)}); give the right factory"
        )
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)


def _torn(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Names that are one tensor in the model but have two values in the file."""
    first: dict[tuple[Any, ...], str] = {}
    pairs = [(name, first.setdefault(_place(own[name]), name)) for name in state if name in own]
    return [f"{a} and {b} are one in the model, two in the file" for a, b in pairs if a != b and not _equal(state[a], state[b])]


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() or torch.equal(a, b)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two names of one (tied) tensor."""
    return (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else (id(tensor),)


def _differs(value: Tensor, own: Tensor) -> bool:
    return value.shape != own.shape or value.is_floating_point() != own.is_floating_point()


def _unfit(name: str, value: Tensor, own: Tensor) -> str:
    return f"{name} is {_shape(value)} in the file, {_shape(own)} in the model"


def _shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dict with the keys {some([str(k) for k in value])}" if value else "an empty dict"
    return f"an object of type {type(value).__name__}"
