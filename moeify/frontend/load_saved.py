"""A model in a file of torch.save: its state_dict, or the whole module."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moeify.data.importable import current_directory_last, one_line
from moeify.errors import InputError
from moeify.frontend.load_torch_file import SAVE_HINT, ForeignPickleError, read_torch_file
from moeify.frontend.module_build import Builder, RefusedError
from moeify.frontend.module_records import ModuleRecord, nn_records
from moeify.frontend.sniff import Kind

#: Under these keys training frameworks keep the model, or its state_dict, inside a checkpoint.
_NESTED = ("state_dict", "model_state_dict", "model")

_ALLOW = ", or if you trust the file, pass --allow-pickle (allow_pickle=True)"


def read_saved(path: Path, kind: Kind, *, allow_pickle: bool = False, sums: bool = True) -> Any:
    """A module, or what is to be a state_dict.

    A module of torch.nn classes alone is built without running anything of the file's. allow_pickle: other files are
    unpickled as they are, which runs what they say. sums: verify the checksums of a zip, which reads all of it. Raises
    InputError for damage, and ForeignPickleError without allow_pickle.
    """
    try:
        found = _inner(read_torch_file(path, kind, nn_records(), sums=sums))
        return Builder().value(found) if isinstance(found, ModuleRecord) else found
    except ForeignPickleError as error:
        if not allow_pickle:
            raise ForeignPickleError(f"{error}{_ALLOW}") from error
    except RefusedError as error:
        if not allow_pickle:
            reason = f"{path}: is a pickled module that could run code: {error}; {SAVE_HINT}"
            raise ForeignPickleError(reason + _ALLOW) from error
    except RecursionError as error:
        raise InputError(f"{path}: is nested too deeply to be a model") from error
    return _inner(_unpickled(path))


def mapped_shapes(path: Path) -> dict[str, list[int]] | None:
    """Shape by name of a state_dict in a zip of torch.save, whose tensors are mapped and not read; None where it holds another
    thing, or is damaged: whoever loads it says so."""
    try:
        found = _inner(read_torch_file(path, "torch", nn_records(), sums=False))
    except InputError:
        return None
    tensors = found.items() if isinstance(found, Mapping) else ()
    return {str(name): list(value.shape) for name, value in tensors if isinstance(value, Tensor)} or None


def _inner(found: Any) -> Any:
    for key in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping | nn.Module | ModuleRecord):
            return found[key]
    return found


def _unpickled(path: Path) -> Any:
    """Runs what the pickle says. Raises InputError for whatever goes wrong meanwhile."""
    with warnings.catch_warnings(), current_directory_last():
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, map_location="cpu", weights_only=False)
        except ModuleNotFoundError as error:
            raise InputError(
                f"{path}: needs the Python module {error.name}, which cannot be imported; put its folder on PYTHONPATH"
            ) from error
        except AttributeError as error:
            raise InputError(
                f"{path}: needs a class that is not where it was when the model was saved ({one_line(error)}); put the module "
                "that defines it on PYTHONPATH, or save model.state_dict() and name a factory"
            ) from error
        except (Exception, SystemExit) as error:  # what a pickle raises is open
            raise InputError(f"{path}: cannot be unpickled: {one_line(error)}") from error
