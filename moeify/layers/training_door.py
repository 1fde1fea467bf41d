"""The door of a model in training: what it was called with, and when its layers' notes begin and end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from moeify.errors import UsageError

if TYPE_CHECKING:
    from moeify.layers.training_state import TrainingState


class TrainingDoor:
    """Hooks at a model's forward, for the TrainingStates of its layers.

    When a call begins, the notes of the last one are let go; when it ends, the notes are closed, so that a block that a
    checkpoint runs again in backward is not noted twice. The masks of a call are kept until the next one, for such a run
    needs them. given: masks that the user gave. A watcher of `model_hooks`.
    """

    def __init__(self) -> None:
        self.open = False
        self.states: list[TrainingState] = []
        self.given: tuple[Tensor, ...] = ()
        self._masks: dict[bool, tuple[Tensor, ...]] = {}

    def weight(self, x: Tensor, decodes: bool) -> Tensor | None:
        """float32 [tokens]: 1 for tokens of x [..., hidden] that count, 0 for padding; None: all count.

        A mask is used where it has x's shape, or as many tokens as x has rows. decodes: x is the second stream of an
        encoder-decoder. Raises UsageError where the user gave masks and none fits.
        """
        for mask in self.given or self._masks.get(decodes, ()):
            if x.shape[:-1] == mask.shape or (x.ndim == 2 and x.shape[0] == mask.numel()):
                return (mask != 0).reshape(-1).to(x.device, torch.float32)
        if self.given:
            shapes = ", ".join(str(list(mask.shape)) for mask in self.given)
            raise UsageError(f"no token mask fits an MoE layer on x {list(x.shape)}: the masks given are {shapes}")
        return None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"open": False, "given": (), "_masks": {}}

    def enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if _in_backward():  # the whole model stands in a checkpoint
            return
        self.open = model.training
        self._masks = _masks(kwargs) if model.training else {}
        for state in self.states:
            state.begin()

    def leave(self, model: nn.Module, args: Any, output: Any) -> None:
        if self.open:
            self.open = False
            for state in self.states:
                state.end()


def _in_backward() -> bool:
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _masks(kwargs: Mapping[str, Any]) -> dict[bool, tuple[Tensor, ...]]:
    """By stream (decodes or not): attention_mask and decoder_attention_mask, [sequences, tokens], nonzero for real tokens."""
    names = {False: "attention_mask", True: "decoder_attention_mask"}
    values = {stream: kwargs.get(name) for stream, name in names.items()}
    return {stream: (mask,) for stream, mask in values.items() if isinstance(mask, Tensor) and mask.ndim == 2}
