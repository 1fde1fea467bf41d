"""Text -> token ids -> windows -> batches, as a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from moeify.data.data_set import batch_tensors
from moeify.data.importable import one_line
from moeify.errors import InputError, UsageError
from moeify.ir.model_graph import Batch

#: The shortest window worth a forward: one token to read, one to predict.
SHORTEST = 2


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer as the reader uses it.

    prefix, suffix: the special tokens that it puts round a text by itself; they go round every window.
    separator: the end-of-text token between documents, if it has one.
    """

    tokenizer: Any
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    separator: int | None
    longest: int

    @classmethod
    def of(cls, tokenizer: Any) -> TextEncoder:
        """Raises InputError for something that does not work like a transformers tokenizer."""
        bare, full = _ids(tokenizer, "a", False), _ids(tokenizer, "a", True)
        start = next((i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare), None)
        around = ((), ()) if start is None else (tuple(full[:start]), tuple(full[start + len(bare) :]))
        separator = getattr(tokenizer, "eos_token_id", None)
        longest = getattr(tokenizer, "model_max_length", None)
        return cls(
            tokenizer,
            *around,
            separator=separator if isinstance(separator, int) else None,
            longest=longest if isinstance(longest, int) else 1 << 62,
        )

    def ids(self, pieces: Iterable[str], documents: bool) -> Iterator[int]:
        """Token ids of the pieces, one after another; between documents stands the separator."""
        for index, piece in enumerate(pieces):
            if documents and index and self.separator is not None:
                yield self.separator
            yield from _ids(self.tokenizer, piece, False)

    def content(self, window: int) -> int:
        """Text tokens in a window of that many tokens (cut to the longest that the tokenizer allows)."""
        room = min(window, self.longest) - len(self.prefix) - len(self.suffix)
        if room < SHORTEST:
            raise UsageError(f"window is {window}: it must leave room for {SHORTEST} tokens besides the special ones")
        return room


def _ids(tokenizer: Any, text: str, special: bool) -> list[int]:
    """verbose=False: no warning for texts longer than the model's window, they are cut later."""
    try:
        found = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        return [int(token) for token in found]
    except Exception as error:
        name = type(tokenizer).__name__
        raise InputError(f"the tokenizer {name} cannot be used like one of transformers: {one_line(error)}") from error


def window_batches(
    encoder: TextEncoder, ids: Iterator[int], window: int, batch: int, fill: Callable[[Tensor], Batch]
) -> Iterator[Batch]:
    """Batches of full windows; a last partial window of at least two text tokens is a batch of its own."""
    size = encoder.content(window)
    rows: list[list[int]] = []
    row: list[int] = []

    def tensor(lines: list[list[int]]) -> Tensor:
        return torch.tensor([[*encoder.prefix, *line, *encoder.suffix] for line in lines], dtype=torch.int64)

    for token in ids:
        row.append(token)
        if len(row) == size:
            rows.append(row)
            row = []
        if len(rows) == batch:
            yield fill(tensor(rows))
            rows = []
    if rows:
        yield fill(tensor(rows))
    if len(row) >= SHORTEST:
        yield fill(tensor([row]))


def text_inputs(example: Batch | None, where: str, names: tuple[str, ...] = ()) -> Callable[[Tensor], Batch]:
    """A function from ids [rows, tokens] to a batch with the example's inputs: ids, masks, positions, and shifted ids for
    a decoder. Raises InputError for an input that text cannot fill."""
    if example is None:
        return lambda ids: {"input_ids": ids}
    wanted = batch_tensors(example)
    called = {key: names[int(key)] if isinstance(example, tuple) and int(key) < len(names) else key for key in wanted}
    if isinstance(example, tuple) and called.get("0") == "0":
        called["0"] = "input_ids"
    for key, name in called.items():
        if name not in _FILLS or wanted[key].ndim != 2:
            raise InputError(f"{where}: text cannot fill the model's input {name!r}; give tensors (.pt, .npz, .safetensors)")

    def fill(ids: Tensor) -> Batch:
        filled = {key: _FILLS[name](ids, wanted[key]).to(wanted[key].dtype) for key, name in called.items()}
        if isinstance(example, tuple):
            return tuple(filled.get(str(i), value) for i, value in enumerate(example))
        return {name: filled.get(name, value) for name, value in example.items()}

    return fill


def _shifted(ids: Tensor, like: Tensor) -> Tensor:
    """[rows, tokens]: the decoder's start token (the example's first) and all ids but the last."""
    return torch.cat((like[:1, :1].expand(ids.shape[0], 1).to(ids.dtype), ids[:, :-1]), dim=1)


_FILLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "input_ids": lambda ids, like: ids,
    "attention_mask": lambda ids, like: torch.ones_like(ids),
    "decoder_attention_mask": lambda ids, like: torch.ones_like(ids),
    "token_type_ids": lambda ids, like: torch.zeros_like(ids),
    "position_ids": lambda ids, like: torch.arange(ids.shape[1]).expand_as(ids),
    "decoder_input_ids": _shifted,
}


def first_of(ids: Iterator[int], where: str) -> Iterator[int]:
    """The same ids. Raises InputError where there are fewer than two."""
    head = list(islice(ids, SHORTEST))
    if len(head) < SHORTEST:
        raise InputError(f"{where}: holds {len(head)} tokens; give at least {SHORTEST}")
    return chain(head, ids)
