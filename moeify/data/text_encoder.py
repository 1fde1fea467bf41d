"""A tokenizer as the readers of text use it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from moeify.data.importable import one_line
from moeify.errors import InputError, UsageError

#: The shortest window worth a forward: one token to read, one to predict.
SHORTEST = 2


@dataclass(frozen=True)
class TextEncoder:
    """The tokenizer, and what it puts round a text.

    prefix, suffix: the special tokens that it puts round a text by itself; they go round every window.
    separator: the end-of-text token between documents, if it has one. padding: what fills a row up, 0 if it has none.
    """

    tokenizer: Any
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    separator: int | None
    longest: int
    padding: int = 0

    @classmethod
    def of(cls, tokenizer: Any) -> TextEncoder:
        """Raises InputError for something that does not work like a transformers tokenizer."""
        bare, full = _ids(tokenizer, "a", False), _ids(tokenizer, "a", True)
        start = next((i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare), None)
        around = ((), ()) if start is None else (tuple(full[:start]), tuple(full[start + len(bare) :]))
        separator = getattr(tokenizer, "eos_token_id", None)
        longest, padding = (getattr(tokenizer, name, None) for name in ("model_max_length", "pad_token_id"))
        return cls(
            tokenizer,
            *around,
            separator=separator if isinstance(separator, int) else None,
            longest=longest if isinstance(longest, int) else 1 << 62,
            padding=padding if isinstance(padding, int) else 0,
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
