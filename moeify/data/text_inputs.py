"""What a model is called with, made of token ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moeify.data.data_set import batch_tensors
from moeify.errors import InputError
from moeify.ir.model_graph import Batch


@dataclass(frozen=True)
class TextInputs:
    """Makes batches with the example's inputs of ids: ids, masks, positions, and shifted ids for a decoder.

    example: None: the ids alone. called: the names of the example's tensors, by where they stand in it.
    """

    example: Batch | None
    called: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, example: Batch | None, where: str, names: tuple[str, ...] = ()) -> TextInputs:
        """names: of positional inputs, in order. Raises InputError for an input that text cannot fill."""
        if example is None:
            return cls(None)
        wanted = batch_tensors(example)
        called = {key: names[int(key)] if isinstance(example, tuple) and int(key) < len(names) else key for key in wanted}
        if isinstance(example, tuple) and called.get("0") == "0":
            called["0"] = "input_ids"
        for key, name in called.items():
            if name not in _FILLS or wanted[key].ndim != 2:
                raise InputError(
                    f"{where}: text cannot fill the model's input {name!r}; give tensors (.pt, .npz, .safetensors)"
                )
        return cls(example, called)

    @property
    def masked(self) -> bool:
        """Can the model be told which tokens of a row count, and is there no second row, a decoder's, to be told of?"""
        return "attention_mask" in self.called.values() and "decoder_input_ids" not in self.called.values()

    def __call__(self, ids: Tensor, mask: Tensor | None = None) -> Batch:
        """The batch of ids [rows, tokens]; mask: like them, 0 for those that do not count."""
        if self.example is None:
            return {"input_ids": ids}
        wanted, shown = batch_tensors(self.example), torch.ones_like(ids) if mask is None else mask
        filled = {key: _FILLS[name](ids, shown, wanted[key]).to(wanted[key].dtype) for key, name in self.called.items()}
        if isinstance(self.example, tuple):
            return tuple(filled.get(str(i), value) for i, value in enumerate(self.example))
        return {name: filled.get(name, value) for name, value in self.example.items()}


def _shifted(ids: Tensor, shown: Tensor, like: Tensor) -> Tensor:
    """[rows, tokens]: the decoder's start token (the example's first) and all ids but the last."""
    return torch.cat((like[:1, :1].expand(ids.shape[0], 1).to(ids.dtype), ids[:, :-1]), dim=1)


_FILLS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "input_ids": lambda ids, shown, like: ids,
    "attention_mask": lambda ids, shown, like: shown,
    "decoder_attention_mask": lambda ids, shown, like: shown,
    "token_type_ids": lambda ids, shown, like: torch.zeros_like(ids),
    "position_ids": lambda ids, shown, like: torch.arange(ids.shape[1]).expand_as(ids),
    "decoder_input_ids": _shifted,
}
