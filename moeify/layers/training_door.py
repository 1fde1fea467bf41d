"""The door of a model in training: what it was called with, and what its MoE layers noted in that call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Record:
    """What one run of a layer noted. losses: by name, with their weights on. tracked: has their gradient been seen to?"""

    losses: dict[str, Tensor]
    tracked: bool


class TrainingDoor:
    """Hooks at a model's forward: forgets the last call when the next one begins, and notes nothing between calls.

    So a block that a checkpoint runs again in backward is noted once. The masks of a call are kept until the next one, for such
    a run needs them. A plain object with methods as hooks, so that a model is copied and pickled together with it; the
    copy begins without records.
    """

    def __init__(self) -> None:
        self.open = False
        self.records: list[Record] = []
        self.masks: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, model: nn.Module) -> TrainingDoor:
        """The one of that model, made and hooked at first use."""
        for hook in model._forward_pre_hooks.values():
            if isinstance(owner := getattr(hook, "__self__", None), cls):
                return owner
        found = cls()
        model.register_forward_pre_hook(found._enter, with_kwargs=True)
        model.register_forward_hook(found._leave, always_call=True)
        return found

    def note(self, losses: dict[str, Tensor], tracked: bool) -> None:
        """Keeps the losses of one run of a layer, if the model is in a call."""
        if self.open:
            self.records.append(Record(losses, tracked))

    def weight(self, x: Tensor) -> Tensor | None:
        """float32 [tokens]: 1 for tokens of x [..., hidden] that count, 0 for padding; None: all count.

        A mask is used where it has x's shape, or as many tokens as x has rows.
        """
        for mask in self.masks:
            if x.shape[:-1] == mask.shape or (x.ndim == 2 and len(x) == mask.numel()):
                return mask.reshape(-1).to(x.device, torch.float32)
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {"open": False, "records": [], "masks": ()}

    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if _in_backward():  # the whole model stands in a checkpoint
            return
        self.records = []
        self.masks = tuple(_masks(kwargs)) if model.training else ()
        self.open = model.training

    def _leave(self, model: nn.Module, args: Any, output: Any) -> None:
        self.open = False


def _in_backward() -> bool:
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _masks(kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """attention_mask and decoder_attention_mask as [sequences, tokens], nonzero for tokens that count."""
    for name in ("attention_mask", "decoder_attention_mask"):
        value = kwargs.get(name)
        if isinstance(value, Tensor) and value.ndim == 2:
            yield value != 0
