"""Attention of the one token that a decoder goes on by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_NAME = "sdpa"


@contextmanager
def one_token_attention() -> Iterator[None]:
    """In the block, models of transformers that attend by torch's kernel take one product for all heads that share keys
    instead, where there is one token a sequence and nothing is masked.

    Scores are those of transformers' "eager" attention, without its copies of keys and values. On CPUs, with three heads to a
    key and 512 tokens in bfloat16, that takes a tenth of the time of torch's kernel, which is made for many tokens.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    functions: Any = ALL_ATTENTION_FUNCTIONS
    before = functions[_NAME]
    functions[_NAME] = _grouped(before)
    try:
        yield
    finally:
        functions[_NAME] = before


def _grouped(otherwise: Callable[..., Any]) -> Callable[..., Any]:
    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        """query [rows, heads, 1, size], key and value [rows, shared heads, tokens, size] -> [rows, 1, heads, size]."""
        plain = attention_mask is None and options.keys() <= _KNOWN and not options.get("dropout")
        rows, heads, tokens, size = query.shape
        if tokens != 1 or not plain or heads % key.shape[1]:
            found: tuple[Tensor, None] = otherwise(module, query, key, value, attention_mask, **options)
            return found
        together = query.reshape(rows, key.shape[1], -1, size)
        scale = options.get("scaling")
        scores = together @ key.transpose(2, 3) * (size**-0.5 if scale is None else scale)
        mixed = scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
        return mixed.reshape(rows, 1, heads, value.shape[-1]), None

    return attention


#: Options that say nothing else of one token's attention.
_KNOWN = frozenset({"dropout", "scaling", "is_causal", "position_ids", "use_cache", "sliding_window"})
