"""A module without its weights, as a file: a converted folder carries it, and builds its dense model from it again."""

from __future__ import annotations

import copy
import io
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from moeify.errors import InputError
from moeify.frontend.load_saved import read_saved
from moeify.frontend.load_torch_file import only_these
from moeify.frontend.module_build import Builder, RefusedError
from moeify.frontend.module_records import nn_records
from moeify.frontend.torch_nn import only_torch_nn

#: The file's name in a folder's source/.
NAME = "module.pt"


def skeleton(model: nn.Module, *, any_class: bool = False) -> bytes | None:
    """What torch.save writes of the module with everything of its state_dict on the meta device; equal for equal modules of
    torch.nn classes.

    None where it could not be opened again: it holds what a pickle cannot, or, without any_class, what `read_saved` does not
    build without the user's word.
    """
    with suppress(Exception):  # copying and pickling run code of the module's own
        bare = _without_weights(model)
        if only_torch_nn(model):
            with suppress(RefusedError), only_these(nn_records()):
                return _saved(Builder().value(torch.load(io.BytesIO(_saved(bare)), weights_only=True)))
        if any_class:
            return _saved(bare)
    return None


def _saved(module: nn.Module) -> bytes:
    content = io.BytesIO()
    torch.save(module, content)
    return content.getvalue()


def read_skeleton(path: Path, *, allow_pickle: bool) -> nn.Module:
    """The module of the file. Raises as `read_saved`."""
    found = read_saved(path, "torch", allow_pickle=allow_pickle)
    if not isinstance(found, nn.Module):
        raise InputError(f"{path}: holds a {type(found).__name__}, not a module; convert the model again")
    return found


def _without_weights(model: nn.Module) -> nn.Module:
    kept = (value for value in model.state_dict(keep_vars=True).values() if isinstance(value, Tensor))
    return copy.deepcopy(model, {id(tensor): _on_meta(tensor) for tensor in kept})


def _on_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
