"""Which tokens each expert works on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch import split_with_sizes as split


def expert_tokens(
    experts: int, chosen: Tensor | None, gates: Tensor | None, dtype: torch.dtype
) -> Iterator[tuple[int, Tensor | None, Tensor | None]]:
    """(expert, its tokens, their gates [tokens, 1] in that dtype) of every expert that a token chose.

    chosen: bool [tokens, experts], None for all; gates [tokens, experts], None for 1. An expert's tokens are indices, or None
    for all of them, where nothing need be gathered.
    """
    if chosen is None:
        for expert in range(experts):
            yield expert, None, None if gates is None else gates[:, expert, None].to(dtype)
        return
    counts = chosen.sum(0).tolist()
    pair_expert, pair_token = chosen.T.nonzero(as_tuple=True)  # sorted by expert
    of_pair = None if gates is None else split(gates[pair_token, pair_expert, None].to(dtype), counts)
    for expert, tokens in enumerate(split(pair_token, counts)):
        if counts[expert]:
            everywhere = counts[expert] == len(chosen)
            yield expert, None if everywhere else tokens, None if of_pair is None else of_pair[expert]


def picked(values: Tensor, tokens: Tensor | None) -> Tensor:
    """The rows of values [tokens, ...] that belong to those tokens."""
    return values if tokens is None else values.index_select(0, tokens)
