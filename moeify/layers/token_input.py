"""The token ids, positions and padding of the call that a model is in, seen by a hook at its door."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class _Stream(NamedTuple):
    """int64 ids and positions, and the mask of what is no padding (None: all), each [sequences, tokens]."""

    ids: Tensor
    positions: Tensor
    shown: Tensor | None


class TokenInput:
    """Notes ids, positions and masks when the model is called, and forgets them when it ends: a watcher of `model_hooks`."""

    def __init__(self) -> None:
        self._seen: tuple[_Stream, ...] = ()
        self._mask: Tensor | None = None

    def at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(ids, positions), int64 [sequences, tokens], for the tokens of x [..., hidden].

        Where the call has no ids of x's shape: the index along x's first axis, and the place along the others.
        """
        if (stream := self._stream(x)) is not None:
            return stream.ids, stream.positions
        sequences, tokens = _cut(x)
        index = torch.arange(sequences, device=x.device).unsqueeze(1)
        place = torch.arange(tokens, device=x.device).unsqueeze(0)
        return index.expand(sequences, tokens), place.expand(sequences, tokens)

    def sequences(self, x: Tensor) -> tuple[tuple[int, int], Tensor | None]:
        """((sequences, tokens) of x [..., hidden], the mask of the tokens that are no padding, None: all are none).

        Where the call has no ids of x's shape: an index along x's first axis is a sequence.
        """
        if (stream := self._stream(x)) is not None:
            return (stream.ids.shape[0], stream.ids.shape[1]), stream.shown
        mask = self._mask if self._mask is not None and x.shape[:-1] == self._mask.shape else None
        return _cut(x), mask

    def _stream(self, x: Tensor) -> _Stream | None:
        for stream in self._seen:
            if x.shape[:-1] == stream.ids.shape or (x.ndim == 2 and len(x) == stream.ids.numel()):
                return stream
        return None

    def enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        named: list[tuple[str, Tensor]] = [(name, kwargs[name]) for name in _MASKS if _is_ids(kwargs.get(name))]
        found = named or [("input_ids", value) for value in args if _is_ids(value)][:1]
        self._seen = tuple(
            _Stream(ids.long(), _positions(ids, kwargs), _shown(ids, kwargs.get(_MASKS[name]))) for name, ids in found
        )
        mask = kwargs.get("attention_mask")
        self._mask = mask if isinstance(mask, Tensor) and not self._seen else None

    def leave(self, model: nn.Module, args: Any, output: Any) -> None:
        self._seen, self._mask = (), None


#: Inputs that are token ids, and the masks that go with them.
_MASKS = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}


def _cut(x: Tensor) -> tuple[int, int]:
    """(sequences, tokens) of x [..., hidden] by its shape alone."""
    tokens = 1
    for size in x.shape[1:-1]:
        tokens = tokens * size
    return x.shape[0] if x.ndim > 1 else 1, tokens


def _is_ids(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2 and value.dtype in (torch.int64, torch.int32)


def _positions(ids: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    """int64 [sequences, tokens]."""
    given, mask, cache = (kwargs.get(name) for name in ("position_ids", "attention_mask", "past_key_values"))
    if isinstance(given, Tensor) and given.ndim == 2:
        return given.long().expand_as(ids)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return ((mask != 0).long().cumsum(1) - 1).clamp(min=0)[:, mask.shape[1] - ids.shape[1] :].expand_as(ids)
    length = getattr(cache, "get_seq_length", None)
    past = length() if callable(length) else 0
    return (torch.arange(ids.shape[1], device=ids.device) + past).unsqueeze(0).expand_as(ids)


def _shown(ids: Tensor, mask: Any) -> Tensor | None:
    """[sequences, tokens]; of a mask that covers a cache too, the part of the ids."""
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return None
    return mask[:, mask.shape[1] - ids.shape[1] :].expand_as(ids)
