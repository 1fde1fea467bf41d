"""Hugging Face encoder-decoders: one graph of both stacks without a cache, run again for every new token."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from moeify.export.onnx.interface import Interface, flat_interface
from moeify.ir.model_graph import Batch

_DECODER = "decoder_input_ids"


def encoder_decoder_interface(model: nn.Module, example: Batch) -> Interface | None:
    """The example's inputs, attention_mask with token ids of a model that takes one, decoder_input_ids => the logits (a model
    without a head: its hidden values). None for anything else."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False) or not isinstance(example, dict):
        return None
    if not isinstance(example.get(_DECODER), Tensor):
        return None
    ids = example.get("input_ids")
    batch = dict(example)
    if isinstance(ids, Tensor) and "attention_mask" in inspect.signature(model.forward).parameters:
        batch.setdefault("attention_mask", torch.ones_like(ids))
        batch[_DECODER] = _of_other_length(example[_DECODER], ids)
    batch[_DECODER] = batch.pop(_DECODER)  # last
    return flat_interface(model, batch, outputs=1)


def _of_other_length(ids: Tensor, encoder: Tensor) -> Tensor:
    """Sizes that are equal in the example would become one axis of the file."""
    return torch.cat([ids, ids[:, -1:]], dim=1) if ids.shape[1] == encoder.shape[1] else ids
