"""Which tokens each expert works on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch import split_with_sizes as split

#: Where counts of an expert's tokens are evened, they are rounded up to a multiple of the first, and to one of so many steps
#: between one power of two and the next.
_STEP, _BETWEEN = 16, 8


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


def evened(x: Tensor, tokens: Tensor | None, gates: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """An expert's tokens and gates, the last of them repeated up to an even count, for x of two bytes a number on
    the CPU without gradients; else as they are. What is computed for repeated ones is to be left out.

    There oneDNN keeps half a megabyte and more for every other count of tokens that it meets, and each expert has its own.
    """
    if tokens is None or x.element_size() != 2 or x.device.type != "cpu" or torch.is_grad_enabled():
        return tokens, gates
    places = torch.arange(even_count(len(tokens))).clamp(max=len(tokens) - 1)
    return tokens[places], None if gates is None else gates[places]


def even_count(count: int) -> int:
    """The least even count that is not below this one: a multiple of 16, above 128 of an eighth of the power of two below it.

    So there are 8 of them up to 128 and 8 for each doubling, and at most an eighth is computed in vain (below 128: 15 tokens).
    """
    below = 1 << max(count - 1, 1).bit_length() - 1
    step = max(_STEP, below // _BETWEEN)
    return -(-count // step) * step
