"""Running a model on a batch, and which of its outputs is measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from moeify.data.data_set import on_device
from moeify.data.importable import one_line
from moeify.errors import ConversionError, InputError, MoeifyError
from moeify.ir.model_graph import Batch

#: Tokens looked at together in float64: what bounds the memory of a measurement.
_CHUNK = 256

_MAIN = ("logits", "last_hidden_state")


@contextmanager
def evaluation_mode(*models: nn.Module | None) -> Iterator[None]:
    """Eval mode for the block; every module's training flag is put back as it was."""
    modules = [module for model in models if model is not None for module in model.modules()]
    flags = [module.training for module in modules]
    for model in models:
        if model is not None:
            model.eval()
    try:
        yield
    finally:
        for module, flag in zip(modules, flags):
            module.training = flag


@contextmanager
def evaluating(*models: nn.Module | None) -> Iterator[None]:
    """Eval mode without gradients for the block."""
    with evaluation_mode(*models), torch.no_grad():
        yield


def run(model: nn.Module, batch: Batch, **options: Any) -> Any:
    """The model's own output for the batch, on the model's device. Raises InputError where the model fails."""
    weight = next(model.parameters(), None)
    placed = batch if weight is None else on_device(batch, weight.device)
    try:
        return model(**placed, **options) if isinstance(placed, dict) else model(*placed, **options)
    except MoeifyError:
        raise
    except (RuntimeError, IndexError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{type(model).__name__} fails on a batch of the data: {one_line(error)}") from error


def main_output(output: Any) -> tuple[str, Tensor]:
    """The output that is compared, with its name: logits, last_hidden_state, or the first tensor. Raises InputError."""
    if isinstance(output, Tensor):
        return "output", output
    if isinstance(output, Mapping):
        for name in (*_MAIN, *output):
            if isinstance(output.get(name), Tensor):
                return name, output[name]
    if isinstance(output, tuple | list):
        for index, value in enumerate(output):
            if isinstance(value, Tensor):
                return f"output {index}", value
    raise InputError(f"the model gives no tensor to measure, but {type(output).__name__}")


def token_ids(batch: Batch) -> Tensor | None:
    """The ids [rows, tokens] that the model reads, or None where it reads something else."""
    ids = batch.get("input_ids") if isinstance(batch, dict) else batch[0] if batch else None
    return ids if isinstance(ids, Tensor) and ids.ndim == 2 and not ids.dtype.is_floating_point else None


def visible(batch: Batch) -> Tensor | None:
    """[rows, tokens] bool: True where the attention mask shows a token that is read; None: everywhere."""
    return _mask(batch, "attention_mask")


def visible_outputs(batch: Batch) -> Tensor | None:
    """The same for the tokens that the output belongs to: in an encoder-decoder they are the decoder's."""
    decodes = isinstance(batch, dict) and any(name.startswith("decoder_") for name in batch)
    return _mask(batch, "decoder_attention_mask" if decodes else "attention_mask")


def _mask(batch: Batch, name: str) -> Tensor | None:
    mask = batch.get(name) if isinstance(batch, dict) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 and not mask.dtype.is_floating_point else None


def chunks(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor in runs of a few hundred rows."""
    return (tensor[start : start + _CHUNK] for start in range(0, len(tensor), _CHUNK))


def finite(value: Tensor, name: str, model: str) -> Tensor:
    """The same tensor. Raises ConversionError where it holds a value that is not finite."""
    if not bool(torch.isfinite(value).all()):
        raise ConversionError(f"the {name} of the {model} model holds values that are not finite; check its weights and dtype")
    return value


def is_causal_language_model(model: nn.Module, batch: Batch) -> bool:
    """Does it predict the next token: logits [rows, tokens, vocabulary] of ids [rows, tokens], each from its past alone?

    Found out by trial on the first row: its last visible token is changed, and the logits before it must stay. Call it
    within `evaluating`. Raises InputError where the model fails.
    """
    ids, shown = token_ids(batch), visible(batch)
    last = -1 if ids is None else ids.shape[1] - 1 if shown is None else int(shown[0].nonzero().max()) if shown[0].any() else -1
    if ids is None or last < 1 or (isinstance(batch, dict) and "decoder_input_ids" in batch):
        return False
    _, logits = main_output(run(model, _first_row(batch, ids)))
    vocabulary = max(vocabulary_of(model) or 0, int(ids.max()) + 1)
    if logits.ndim != 3 or logits.shape[:2] != (1, ids.shape[1]) or logits.shape[-1] < vocabulary:
        return False
    changed = ids[:1].clone()
    changed[:, last] = (changed[:, last] + 1) % vocabulary
    _, others = main_output(run(model, _first_row(batch, ids, changed)))
    before, after = logits[:, :last].float(), others[:, :last].float()
    slack = 1e-4 if logits.dtype in (torch.float32, torch.float64) else 1e-2
    return bool((before - after).abs().max() <= slack * before.abs().max())


def vocabulary_of(model: nn.Module) -> int | None:
    """The number of token ids that the model knows, where it says so."""
    find = getattr(model, "get_input_embeddings", None)
    if not callable(find):
        return None
    try:
        size = getattr(find(), "num_embeddings", None)
    except NotImplementedError:
        return None
    return size if isinstance(size, int) else None


def _first_row(batch: Batch, ids: Tensor, instead: Tensor | None = None) -> Batch:
    """The first row of the batch, with other ids if some are given."""

    def first(value: Any) -> Any:
        if value is ids and instead is not None:
            return instead
        return value[:1] if isinstance(value, Tensor) and value.ndim and value.shape[0] == ids.shape[0] else value

    if isinstance(batch, dict):
        return {name: first(value) for name, value in batch.items()}
    return tuple(first(value) for value in batch)
