"""The token ids and positions of the call that a model is in, seen by a hook at its door."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class TokenInput:
    """Notes ids and positions when the model is called, and forgets them when the call ends.

    A plain object with methods as hooks, so that a model is copied and pickled together with it.
    """

    def __init__(self) -> None:
        self._seen: tuple[tuple[Tensor, Tensor], ...] = ()

    @classmethod
    def of(cls, model: nn.Module) -> TokenInput:
        """The one of that model, made and hooked at first use."""
        for hook in model._forward_pre_hooks.values():
            if isinstance(owner := getattr(hook, "__self__", None), cls):
                return owner
        found = cls()
        model.register_forward_pre_hook(found._enter, with_kwargs=True)
        model.register_forward_hook(found._leave, always_call=True)
        return found

    @staticmethod
    def forget(model: nn.Module) -> None:
        """Takes the hooks of the one of that model away again, where there is one: no layer of it asks any more."""
        for hooks in (model._forward_pre_hooks, model._forward_hooks):
            for number in [n for n, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), TokenInput)]:
                del hooks[number]
                for flags in (model._forward_pre_hooks_with_kwargs, model._forward_hooks_always_called):
                    flags.pop(number, None)

    def at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(ids, positions), int64 [sequences, tokens], for the tokens of x [..., hidden].

        Where the call has no ids of x's shape: the index along x's first axis, and the place along the others.
        """
        for ids, positions in self._seen:
            if x.shape[:-1] == ids.shape or (x.ndim == 2 and len(x) == ids.numel()):
                return ids, positions
        sequences = x.shape[0] if x.ndim > 1 else 1
        tokens = 1
        for size in x.shape[1:-1]:
            tokens = tokens * size
        index = torch.arange(sequences, device=x.device).unsqueeze(1)
        place = torch.arange(tokens, device=x.device).unsqueeze(0)
        return index.expand(sequences, tokens), place.expand(sequences, tokens)

    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        named = [kwargs.get(name) for name in ("input_ids", "decoder_input_ids")]
        found = [value for value in named if _is_ids(value)] or [value for value in args if _is_ids(value)][:1]
        self._seen = tuple((ids.long(), _positions(ids, kwargs)) for ids in found if ids is not None)

    def _leave(self, model: nn.Module, args: Any, output: Any) -> None:
        self._seen = ()


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
