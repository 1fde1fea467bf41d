"""A model without its weights: all tensors on the meta device, enough to trace it and to find its sites."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from moeify.frontend.load_adapter import base_of
from moeify.frontend.load_exported import exported_outline
from moeify.frontend.load_factory import Factory, build_outline
from moeify.frontend.load_huggingface import load_gguf, load_huggingface
from moeify.frontend.load_model import with_inputs
from moeify.frontend.load_module import class_path
from moeify.frontend.load_saved import read_saved
from moeify.frontend.loaded import LoadedModel, SourceInfo
from moeify.frontend.sniff import sniff
from moeify.ir.model_graph import Batch


def load_outline(
    source: str | Path, example: str | Path | Batch | None, dtype: torch.dtype, factory: Factory | None = None
) -> LoadedModel | None:
    """None for what tells its shape with its weights only: a pickle that is not a zip, or of classes beside torch.nn's.

    Raises InputError (or UsageError) as `load_model`.
    """
    path = Path(source).expanduser()
    loaded = _of_state_dict(path, factory, dtype) if factory is not None else _whole(path, dtype)
    if loaded is None:
        return None
    loaded.model.eval()
    return with_inputs(loaded, example, "meta")


def _of_state_dict(path: Path, factory: Factory, dtype: torch.dtype) -> LoadedModel | None:
    if sniff(path) not in ("torch", "pickle", "safetensors"):
        return None
    model = build_outline(factory).to(dtype)
    return LoadedModel(model, (), SourceInfo("state-dict", path.name, class_path(model)), path=path)


def _whole(path: Path, dtype: torch.dtype) -> LoadedModel | None:
    """What says itself which model it is."""
    match sniff(path):
        case "huggingface":
            return load_huggingface(path, dtype, weights=False)
        case "gguf":
            return load_gguf(path, dtype, weights=False)
        case "adapter":  # merged, it has the shape of the model that it belongs to
            return load_huggingface(base_of(path), dtype, weights=False)
        case "exported-program":
            model, example = exported_outline(path)
            return LoadedModel(model, example, SourceInfo("exported-program", path.name, ""), path=path)
        case "torch":
            found = read_saved(path, "torch", sums=False)  # mapped: no weight is read
            if isinstance(found, nn.Module):
                model = found.to("meta", dtype)
                return LoadedModel(model, (), SourceInfo("module-file", path.name, class_path(model)), path=path)
    return None
