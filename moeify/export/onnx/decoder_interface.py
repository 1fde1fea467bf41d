"""Hugging Face causal language models: one graph for prefill (an empty cache) and decode steps."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn

from moeify.export.onnx.interface import Interface, named_tensors
from moeify.ir.model_graph import Batch

_PAST, _TOKENS = 5, 3  # of the traced example; the file takes any


class CachedDecoder(nn.Module):
    """input_ids, attention_mask [, position_ids], then key and value of each layer => the output, then the longer cache."""

    def __init__(self, model: nn.Module, positions: bool) -> None:
        super().__init__()
        self.traced = model
        self._names = ("input_ids", "attention_mask", "position_ids")[: 3 if positions else 2]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(self._names)
        cache = filled_cache(tensors[count:])
        inputs = dict(zip(self._names, tensors))
        output = self.traced(**inputs, past_key_values=cache, use_cache=True)
        first = next(iter(named_tensors(output).values()))
        return (first, *cache_tensors(output.past_key_values))


def filled_cache(tensors: tuple[Tensor, ...]) -> Any:
    """A transformers cache from key, value, key, value, ..., each [batch, heads, past, head_dim]."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache()
    for key, value in zip(tensors[::2], tensors[1::2]):
        layer = DynamicLayer()
        layer.lazy_initialization(key, value)
        layer.keys, layer.values = key, value
        cache.layers.append(layer)
    return cache


def cache_tensors(cache: Any) -> tuple[Tensor, ...]:
    """key, value, key, value, ..."""
    return tuple(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))


def decoder_interface(model: nn.Module, example: Batch) -> Interface | None:
    """None for anything but a decoder whose cache is keys and values of every layer."""
    ids = example.get("input_ids") if isinstance(example, dict) else None
    parameters = inspect.signature(model.forward).parameters
    if not isinstance(ids, Tensor) or not {"past_key_values", "use_cache", "attention_mask"} <= set(parameters):
        return None
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return None
    probe = model(input_ids=ids[:1], use_cache=True)
    layers = getattr(getattr(probe, "past_key_values", None), "layers", ())
    if not layers or not all(_plain(layer) for layer in layers):
        return None
    positions = "position_ids" in parameters
    names = ("input_ids", "attention_mask", "position_ids")[: 3 if positions else 2]
    return Interface(
        CachedDecoder(model, positions),
        (*_tokens(ids, positions), *_past(layers)),
        (*names, *_names("past_key_values", len(layers))),
        (next(iter(named_tensors(probe))), *_names("present", len(layers))),
        cache_layers=len(layers),
    )


def _plain(layer: Any) -> bool:
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    return isinstance(keys, Tensor) and isinstance(values, Tensor) and keys.ndim == values.ndim == 4


def _tokens(ids: Tensor, positions: bool) -> tuple[Tensor, ...]:
    wanted = ids.flatten().repeat(2 * _TOKENS)[: 2 * _TOKENS].view(2, _TOKENS)
    mask = torch.ones(2, _PAST + _TOKENS, dtype=torch.int64)
    places = torch.arange(_PAST, _PAST + _TOKENS).repeat(2, 1)
    return (wanted, mask, places) if positions else (wanted, mask)


def _past(layers: Any) -> tuple[Tensor, ...]:
    def empty(like: Tensor) -> Tensor:
        return like.new_zeros(2, like.shape[1], _PAST, like.shape[3])

    return tuple(empty(cast(Tensor, t)) for layer in layers for t in (layer.keys, layer.values))


def _names(prefix: str, layers: int) -> tuple[str, ...]:
    return tuple(f"{prefix}.{i}.{part}" for i in range(layers) for part in ("key", "value"))
