"""A whole module, in memory or out of a file: what is asked of it, and what is kept of it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from moeify.errors import InputError
from moeify.frontend.load_checks import check_finite
from moeify.frontend.loaded import LoadedModel, SourceInfo, file_digest
from moeify.frontend.skeleton import NAME, skeleton

_TRANSFORMERS = "transformers."


def in_memory(model: nn.Module) -> LoadedModel:
    """The module as it is. Raises InputError where it lacks values or carries adapters."""
    _check(model)
    return LoadedModel(model, (), SourceInfo("module", type(model).__name__, class_path(model)), files=kept(model))


def from_file(path: Path, model: nn.Module, dtype: torch.dtype) -> LoadedModel:
    """The module that was in that file, its weights in that dtype. Raises as `in_memory`."""
    _check(model.to(dtype))
    source = SourceInfo("module-file", path.name, class_path(model), {path.name: file_digest(path)})
    return LoadedModel(model, (), source, path=path, files=kept(model, any_class=True))


def kept(model: nn.Module, *, any_class: bool = False) -> dict[str, bytes]:
    """What a folder keeps to build the module again; nothing for a model of transformers, which its config builds."""
    of_transformers = class_path(model).startswith(_TRANSFORMERS)
    content = None if of_transformers else skeleton(model, any_class=any_class)
    return {} if content is None else {NAME: content}


def class_path(model: nn.Module) -> str:
    """`transformers.<class>` where the class is one of transformers' public ones, else where it was defined."""
    cls, transformers = type(model), sys.modules.get("transformers")
    if cls.__module__.startswith(_TRANSFORMERS) and getattr(transformers, cls.__name__, None) is cls:
        return f"{_TRANSFORMERS}{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def _check(model: nn.Module) -> None:
    name = type(model).__name__
    for path, module in model.named_modules():
        if type(module).__module__.startswith("peft.tuners."):
            raise InputError(
                f"{name}: carries adapters of PEFT (at {path or 'its top'}); merge them into the weights first: "
                "model = model.merge_and_unload()"
            )
    for path, parameter in model.named_parameters():
        if parameter.is_meta or isinstance(parameter, nn.UninitializedParameter):
            raise InputError(f"{name}: {path} has no values (lazy, or on the meta device); load its weights first")
    check_finite(model, name)
