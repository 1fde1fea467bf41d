"""The dense model without its weights, into which the saved ones are put."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from moeify.data.importable import one_line
from moeify.errors import InputError, MissingExtraError
from moeify.frontend.default_dtype import default_dtype
from moeify.frontend.load_example import ASSUMED, read_example
from moeify.frontend.load_exported import NAME as PROGRAM
from moeify.frontend.load_exported import check_dtype, read_exported
from moeify.frontend.load_factory import Factory, build
from moeify.frontend.load_quietly import quiet_transformers
from moeify.frontend.load_torch_file import ForeignPickleError
from moeify.frontend.loaded import SourceInfo
from moeify.frontend.skeleton import NAME as SKELETON
from moeify.frontend.skeleton import read_skeleton
from moeify.ir.model_graph import Batch

_PREFIX = "transformers."
_SAFE = {"local_files_only": True, "trust_remote_code": False}


def build_skeleton(
    folder: Path, info: SourceInfo, factory: Factory | None, dtype: torch.dtype, allow_pickle: bool
) -> nn.Module:
    """The dense model with parameters on the meta device; or what `factory` builds.

    Only classes of transformers are taken by name, from `folder`/source/config.json; a factory is never imported because a
    file names it. `folder`/source/module.pt is built where it is of torch.nn classes alone, or with allow_pickle;
    `folder`/source/program.pt2 where nothing in it could run.
    Raises InputError where a factory is needed, or the config does not make the model.
    """
    if factory is not None:
        model = build(factory)
        first = next((p.dtype for p in model.parameters() if p.is_floating_point()), dtype)
        return model.to(dtype) if info.kind == "state-dict" or first != dtype else model
    if not info.model_class.startswith(_PREFIX):
        return _kept(folder, info, dtype, allow_pickle)
    with quiet_transformers("a converted Hugging Face model") as transformers:
        try:
            return _from_config(transformers, _known_class(transformers, folder, info), folder / "source", dtype)
        except (OSError, ValueError, TypeError, AttributeError, RuntimeError, KeyError) as error:
            raise InputError(f"{folder / 'source'}: does not make a {info.model_class}: {one_line(error)}") from error


def read_assumed(folder: Path) -> Batch | None:
    """The example inputs that were assumed when the model was converted; None where the user gave some."""
    path = folder / "source" / ASSUMED
    return read_example(path) if path.is_file() else None


def _kept(folder: Path, info: SourceInfo, dtype: torch.dtype, allow_pickle: bool) -> nn.Module:
    """The module or program without its weights that the folder holds."""
    factory = "name a callable that builds it (factory=..., --factory pkg.mod:callable)"
    module, program = folder / "source" / SKELETON, folder / "source" / PROGRAM
    if module.is_file():
        try:
            return read_skeleton(module, allow_pickle=allow_pickle).to(dtype)
        except ForeignPickleError as error:
            raise ForeignPickleError(f"{error}; or {factory}") from error
    if program.is_file():
        model = read_exported(program)
        check_dtype(model, dtype, folder)
        return model
    was = f"with the factory {info.factory}" if info.factory else f"as a {info.model_class} in memory"
    raise InputError(f"{folder}: its dense model came {was}: {factory}")


def read_tokenizer(folder: Path) -> Any | None:
    """The tokenizer of `folder`/source, or None where there is none. Raises InputError where it cannot be read."""
    source = folder / "source"
    if not (source / "tokenizer_config.json").is_file():
        return None
    with quiet_transformers("a tokenizer") as transformers:
        try:
            return transformers.AutoTokenizer.from_pretrained(source, **_SAFE)
        except Exception as error:  # tokenizers raise errors of every kind
            raise InputError(f"{source}: the tokenizer cannot be read: {one_line(error)}") from error


def _known_class(transformers: Any, folder: Path, info: SourceInfo) -> Any:
    name = info.model_class.removeprefix(_PREFIX)
    found = getattr(transformers, name, None) if name.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise InputError(
            f"{folder / 'moeify.json'}: field model_class is {info.model_class!r}, no model of transformers "
            f"{transformers.__version__}; upgrade transformers, or give a factory"
        )
    return found


def _from_config(transformers: Any, cls: Any, source: Path, dtype: torch.dtype) -> nn.Module:
    model: Any = empty_model(cls, transformers.AutoConfig.from_pretrained(source, **_SAFE), dtype)
    if (source / "generation_config.json").is_file() and hasattr(model, "generation_config"):
        model.generation_config = transformers.GenerationConfig.from_pretrained(source, local_files_only=True)
    assert isinstance(model, nn.Module)
    return model


def empty_model(cls: Any, config: Any, dtype: torch.dtype) -> Any:
    """A model of transformers with parameters on the meta device. Raises MissingExtraError without accelerate."""
    try:
        from accelerate import init_empty_weights
    except ImportError as error:
        raise MissingExtraError("accelerate", "hf", "opening a converted Hugging Face model") from error
    # Buffers stay real: those that no file holds (rotary frequencies, positions) are computed while the model is built.
    with default_dtype(dtype), torch.random.fork_rng(devices=[]):
        with init_empty_weights(include_buffers=False):
            model = cls(config)
        if any(buffer.is_meta for buffer in model.buffers()):
            model = cls(config)  # its buffers are computed from its parameters
    return model
