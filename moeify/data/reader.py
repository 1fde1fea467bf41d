"""The one way in for data: whatever the source, re-iterable batches for the model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from moeify.data.calls import batches_digest, called_batches, checked_batches
from moeify.data.data_set import DataSet
from moeify.data.documents import json_documents, text_pieces
from moeify.data.fitting import fit_to
from moeify.data.importable import importable, is_importable_name
from moeify.data.sniff import FileKind, kind_of
from moeify.data.tensors import read_tensors, row_batches
from moeify.data.windows import SHORTEST, TextEncoder, first_of, limited, text_inputs, window_batches
from moeify.errors import InputError, UsageError
from moeify.ir.model_graph import Batch


def open_data(
    source: str | Path | Callable[[], Iterable[Any]] | Iterable[Any],
    *,
    tokenizer: Any = None,
    example: Batch | None = None,
    window: int = 512,
    batch: int = 4,
    tokens: int | None = None,
    input_names: Sequence[str] = (),
    vocabulary: int | None = None,
) -> DataSet:
    """Opens data for calibration, alignment, evaluation or benchmarks.

    source: a text file, a .jsonl file with a field "text", a tensor file (.pt, .npz, .npy, .safetensors; first
        dimension: rows), "package.module:callable" or a callable that gives an iterable of batches (called anew for each
        iteration), or an iterable of batches. The content of a file decides, then its suffix.
    tokenizer: for text; one of transformers, or alike. Its own special tokens go round each window.
    example: a batch that the model takes; data is given its form and held against it.
    window: tokens in a window of text, special tokens included (cut to what the tokenizer allows).
    batch: rows in a batch. tokens: stop early (exact for text, at the end of a batch otherwise).
    input_names: the names of the model's positional inputs. vocabulary: token ids must be below it.

    Raises UsageError for an option out of bounds, InputError for a source that cannot be read or does not fit. What is
    wrong further on in a stream raises InputError when the iteration gets there.
    """
    for name, value, least in (("window", window, SHORTEST), ("batch", batch, 1), ("tokens", tokens, SHORTEST)):
        if value is not None and value < least:
            raise UsageError(f"{name} is {value}: it must be at least {least}")
    if isinstance(source, str | Path) and not (isinstance(source, str) and is_importable_name(source)):
        path = Path(source).expanduser()
        kind = kind_of(path)
        if kind in ("text", "jsonl"):
            return _text(path, kind, tokenizer, example, window, batch, tokens, tuple(input_names), vocabulary)
        rows = fit_to(example, input_names, vocabulary, str(path))(read_tensors(path, kind))
        options = {"batch": batch}
        return DataSet("tensors", path.name, lambda: row_batches(rows, batch), lambda: _file_digest(path), options, tokens)
    return _python(source, example, tuple(input_names), vocabulary, tokens)


def _text(
    path: Path, kind: FileKind, tokenizer: Any, example: Batch | None, window: int, batch: int, tokens: int | None,
    names: tuple[str, ...], vocabulary: int | None,
) -> DataSet:  # fmt: skip
    if tokenizer is None:
        raise InputError(
            f"{path}: is text, which needs a tokenizer; name its folder, or give tensors (.pt, .npz, .safetensors)"
        )
    encoder = TextEncoder.of(tokenizer)
    encoder.content(window)
    fill = text_inputs(example, str(path), names)

    check = fit_to(None, names, vocabulary, str(path))

    def batches() -> Iterator[Batch]:
        pieces = json_documents(path) if kind == "jsonl" else text_pieces(path)
        ids = first_of(limited(encoder.ids(pieces, kind == "jsonl"), tokens), str(path))
        return map(check, window_batches(encoder, ids, window, batch, fill))

    options = {"window": min(window, encoder.longest), "batch": batch}
    return _first(DataSet(kind, path.name, batches, lambda: _file_digest(path), options, tokens))


def _python(source: Any, example: Batch | None, names: tuple[str, ...], vocabulary: int | None, tokens: int | None) -> DataSet:
    name = source if isinstance(source, str) else getattr(source, "__qualname__", type(source).__name__)
    fit = fit_to(example, names, vocabulary, name)
    called = importable(source, "the data set") if isinstance(source, str) else source
    if callable(called) and not isinstance(called, Iterable):
        return DataSet("callable", name, lambda: map(fit, called_batches(called, name)), lambda: None, {}, tokens)
    if isinstance(called, Iterator):  # can be read once only
        called = list(checked_batches(called, name))

    def batches() -> Iterator[Batch]:
        return map(fit, checked_batches(called, name))

    return _first(DataSet("batches", name, batches, lambda: batches_digest(batches()), {}, tokens))


def _first(data: DataSet) -> DataSet:
    """The same data, after its first batch was read: what is wrong there is said at once."""
    next(iter(data))
    return data


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
