"""A model that is dense again, written as what it was before its conversion."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import nn

from moeify.errors import UsageError
from moeify.export.atomic import check_target, whole_file, whole_folder
from moeify.export.folder_weights import write_one_file
from moeify.frontend.load_example import ASSUMED
from moeify.frontend.load_exported import NAME as PROGRAM
from moeify.frontend.load_module import class_path
from moeify.frontend.skeleton import NAME as SKELETON

_SUFFIX = ".safetensors"
_TRANSFORMERS = "transformers."

#: What a converted folder keeps in source/ for itself.
_OWN = (ASSUMED, PROGRAM, SKELETON)


def check_dense_target(output: Path, model_class: str, *, force: bool) -> None:
    """Raises UsageError for a name that does not fit what will be written, OutputError where it may not be."""
    if not model_class.startswith(_TRANSFORMERS) and output.suffix != _SUFFIX:
        raise UsageError(
            f"{output}: a {model_class} becomes a state_dict in a safetensors file: choose a name that ends in {_SUFFIX}"
        )
    check_target(output, force=force)


def save_dense(model: nn.Module, output: Path, source: Path | None, *, force: bool) -> None:
    """A Hugging Face folder for a class of transformers, else the state_dict as a safetensors file, tied tensors once.

    source: a converted folder's source/, whose tokenizer and other small files go along. The result appears whole or not at
    all. Raises OutputError where it cannot be written.
    """
    model_class = class_path(model)
    check_dense_target(output, model_class, force=force)
    if not model_class.startswith(_TRANSFORMERS):
        with whole_file(output, force) as part:
            write_one_file(model, part)
        return
    saved: Any = model
    with whole_folder(output, force) as folder:
        for path in sorted(source.iterdir()) if source is not None and source.is_dir() else ():
            if path.is_file() and path.name not in _OWN:
                shutil.copyfile(path, folder / path.name)
        saved.save_pretrained(folder)
