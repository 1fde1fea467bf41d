"""How a model gets in: whatever `source` is, a module in eval mode with one batch of inputs comes out, or one clear error."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from moeify.errors import InputError, UsageError
from moeify.frontend.example_inputs import example_inputs, needs_example
from moeify.frontend.infer_example import infer_example
from moeify.frontend.load_adapter import load_adapter
from moeify.frontend.load_checks import check_finite
from moeify.frontend.load_example import ASSUMED, read_example
from moeify.frontend.load_exported import load_exported
from moeify.frontend.load_factory import Factory, build, factory_name
from moeify.frontend.load_huggingface import load_gguf, load_huggingface
from moeify.frontend.load_module import class_path, from_file, in_memory, kept
from moeify.frontend.load_refusals import refusal
from moeify.frontend.load_safetensors import read_safetensors
from moeify.frontend.load_saved import read_saved
from moeify.frontend.load_state_dict import fill, state_dict_of
from moeify.frontend.loaded import LoadedModel, SourceInfo, file_digest
from moeify.frontend.onnx.load import load_onnx, with_onnx_inputs
from moeify.frontend.onnx.model import OnnxModel
from moeify.frontend.sniff import Kind, sniff
from moeify.ir.model_graph import Batch


def load_model(
    source: str | Path | nn.Module,
    *,
    factory: Factory | None = None,
    example: str | Path | Batch | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    allow_pickle: bool = False,
) -> LoadedModel:
    """The model, in eval mode on that device, with example inputs.

    source: a Hugging Face folder (safetensors) or a LoRA adapter's, a GGUF file, an ONNX file, a state_dict (.pt, .pth,
    .safetensors) with its `factory`, a pickled module (.pt; with a factory its weights count alone), a torch.export archive
    (.pt2) or a module in memory, which both stay in their own dtype. What a file holds is told by its content. Nothing is
    downloaded; no code of the file's own is run, but for pickles with allow_pickle; a factory or example given by name is
    imported. Inputs that are not given are told by the archive, by an ONNX file's own, by a config of transformers or by the
    first layer.

    Raises InputError (or UsageError for a wrong combination of arguments) in one line: what, where, which value, what next.
    """
    if isinstance(source, nn.Module):
        if factory is not None:
            raise UsageError("factory: is for state_dicts; a module in memory needs none")
        loaded = in_memory(source)
    else:
        path = Path(source).expanduser()
        loaded = _from_disk(path, sniff(path), factory, dtype, allow_pickle)
    loaded.model.to(device).eval()
    return with_inputs(loaded, example, device)


def with_inputs(loaded: LoadedModel, example: str | Path | Batch | None, device: str) -> LoadedModel:
    """The model with those inputs, else its own, else what it tells of itself; their floats in the dtype of its weights.

    Raises InputError where none can be had.
    """
    if isinstance(loaded.model, OnnxModel):
        return with_onnx_inputs(loaded, None if example is None else read_example(example, device))
    if example is not None:
        loaded = replace(loaded, example=read_example(example, device))
    elif not loaded.example:
        loaded = _with_example(loaded)
    return replace(loaded, example=_in_dtype(loaded.example, loaded.model))


#: What needs no factory, and how it is read.
_WHOLE: Mapping[Kind, Callable[[Path, torch.dtype], LoadedModel]] = {
    "huggingface": load_huggingface, "adapter": load_adapter, "gguf": load_gguf, "exported-program": load_exported,
    "onnx": load_onnx,
}  # fmt: skip


def _from_disk(path: Path, kind: Kind, factory: Factory | None, dtype: torch.dtype, allow_pickle: bool) -> LoadedModel:
    if (load := _WHOLE.get(kind)) is not None:
        if factory is not None:
            raise UsageError(f"factory: is for state_dicts; {path} says itself which model it is")
        return load(path, dtype)
    if kind == "safetensors":
        return _from_state_dict(path, read_safetensors(path), factory, dtype)
    if kind in ("torch", "pickle"):
        found = read_saved(path, kind, allow_pickle=allow_pickle)
        if isinstance(found, nn.Module) and factory is None:
            return from_file(path, found, dtype)
        return _from_state_dict(path, found.state_dict() if isinstance(found, nn.Module) else found, factory, dtype)
    raise refusal(path, kind)


def _from_state_dict(path: Path, found: Any, factory: Factory | None, dtype: torch.dtype) -> LoadedModel:
    state = state_dict_of(found, path)
    if factory is None:
        beside = f", or give the folder {path.parent}" if (path.parent / "config.json").is_file() else ""
        raise InputError(
            f"{path}: is a state_dict, which does not say what model it belongs to: name a callable that builds it "
            f"(factory=..., --factory pkg.mod:callable){beside}"
        )
    model = build(factory).to(dtype)
    fill(model, state, path)
    check_finite(model, str(path))
    source = SourceInfo("state-dict", path.name, class_path(model), {path.name: file_digest(path)}, factory_name(factory))
    return LoadedModel(model, (), source, path=path, files=kept(model))


def _with_example(loaded: LoadedModel) -> LoadedModel:
    """The model with inputs that its config or its first layer tells; those that were assumed go along."""
    if not loaded.source.model_class.startswith("transformers."):
        assumed = infer_example(loaded.model)
        if assumed is None:
            raise needs_example(loaded.model)
        x, note = assumed
        loaded = replace(loaded, example=(x,), notes=(*loaded.notes, note))
        return loaded if x.is_meta else replace(loaded, files={**loaded.files, ASSUMED: _saved(x)})
    try:
        return replace(loaded, example=example_inputs(loaded.model, loaded.tokenizer))
    except InputError:
        raise
    except Exception as error:  # configs of models that nobody foresaw
        raise needs_example(loaded.model) from error


def _saved(x: torch.Tensor) -> bytes:
    content = io.BytesIO()
    torch.save((x.cpu(),), content)
    return content.getvalue()


def _in_dtype(example: Batch, model: nn.Module) -> Batch:
    """The example with its floats in the dtype of the model's weights: files hold float32 whatever --dtype says."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    cast: Batch = pytree.tree_map_only(torch.Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, example)
    return cast
