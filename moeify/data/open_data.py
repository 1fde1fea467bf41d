"""The one way in for data: whatever the source, re-iterable batches for the model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from moeify.data.calls import batches_digest, called_batches, checked_batches
from moeify.data.data_set import DataSet, Sourced, of_one, until
from moeify.data.document_rows import document_batches, reads_documents
from moeify.data.documents import json_documents, text_pieces
from moeify.data.fitting import fit_to
from moeify.data.importable import importable, is_importable_name
from moeify.data.mixed import mixed, sources_of
from moeify.data.sniff import FileKind, kind_of
from moeify.data.tensors import read_tensors, row_batches
from moeify.data.text_encoder import SHORTEST, TextEncoder
from moeify.data.text_inputs import TextInputs
from moeify.data.windows import first_of, window_batches
from moeify.errors import InputError, UsageError
from moeify.ir.model_graph import Batch


def open_data(
    source: str | Path | Sequence[str | Path] | Callable[[], Iterable[Any]] | Iterable[Any],
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

    source: a text file, a .jsonl file with a field "text" (its documents are rows for a model that reads one text at a time,
        such as a sentence encoder, else one text), a tensor file (.pt, .npz, .npy, .safetensors; first dimension: rows),
        "package.module:callable" or a callable that gives an iterable of batches (called anew for each iteration), or an
        iterable of batches. The content of a file decides, then its suffix. A list or tuple of files and names is mixed
        (`mixed`): batches of each in turn, with its part of `batch` rows, until all are at their ends.
    tokenizer: for text; one of transformers, or alike. Its own special tokens go round each window.
    example: a batch that the model takes; data is given its form and held against it.
    window: tokens in a window of text, special tokens included (cut to what the tokenizer allows).
    batch: rows in a batch; of documents shorter than a window, as many as take their room.
    tokens: stop early (at so many tokens of one text, at the end of a batch otherwise).
    input_names: the names of the model's positional inputs. vocabulary: token ids must be below it.

    Raises UsageError for an option out of bounds, InputError for a source that cannot be read or does not fit. What is
    wrong further on in a stream raises InputError when the iteration gets there.
    """
    for name, value, least in (("window", window, SHORTEST), ("batch", batch, 1), ("tokens", tokens, SHORTEST)):
        if value is not None and value < least:
            raise UsageError(f"{name} is {value}: it must be at least {least}")
    parts = sources_of(source)
    wanted = _Wanted(example, tuple(input_names), vocabulary, max(1, batch // len(parts)), tokens)
    found = [_open(part, tokenizer, window, wanted) for part in parts]
    return found[0] if len(found) == 1 else mixed(found, tokens)


def _open(source: Any, tokenizer: Any, window: int, wanted: _Wanted) -> DataSet:
    """One source."""
    if not isinstance(source, str | Path) or (isinstance(source, str) and is_importable_name(source)):
        return _python(source, wanted)
    path = Path(source).expanduser()
    kind = kind_of(path)
    return _text(path, kind, tokenizer, window, wanted) if kind in ("text", "jsonl") else _tensors(path, kind, wanted)


@dataclass(frozen=True, eq=False)
class _Wanted:
    """The batches that are asked for: see `open_data`."""

    example: Batch | None
    names: tuple[str, ...]
    vocabulary: int | None
    batch: int
    tokens: int | None


def _text(path: Path, kind: FileKind, tokenizer: Any, window: int, wanted: _Wanted) -> DataSet:
    if tokenizer is None:
        raise InputError(
            f"{path}: is text, which needs a tokenizer, and the model brings none; put its files (tokenizer.json, ...) into "
            "the model's folder, or give tensors (.pt, .npz, .safetensors)"
        )
    encoder = TextEncoder.of(tokenizer)
    encoder.content(window)
    inputs = TextInputs.of(wanted.example, str(path), wanted.names)
    check = fit_to(None, wanted.names, wanted.vocabulary, str(path))
    apart = kind == "jsonl" and reads_documents(encoder, inputs)

    def batches() -> Iterator[Sourced]:
        pieces = json_documents(path) if kind == "jsonl" else text_pieces(path)
        ids = first_of(islice(encoder.ids(pieces, kind == "jsonl"), wanted.tokens), str(path))  # refuses what holds no text
        if apart:
            found = document_batches(encoder, json_documents(path), window, wanted.batch, wanted.tokens, inputs)
        else:
            found = window_batches(encoder, ids, window, wanted.batch, inputs)
        return of_one(map(check, found))

    options = {"window": min(window, encoder.longest), "batch": wanted.batch, "limit": wanted.tokens}
    return _first(DataSet(kind, path.name, batches, _file_digest(path), options))


def _tensors(path: Path, kind: FileKind, wanted: _Wanted) -> DataSet:
    rows = fit_to(wanted.example, wanted.names, wanted.vocabulary, str(path))(read_tensors(path, kind))

    def batches() -> Iterator[Sourced]:
        return until(of_one(row_batches(rows, wanted.batch)), wanted.tokens)

    options = {"batch": wanted.batch, "limit": wanted.tokens}
    return DataSet("tensors", path.name, batches, _file_digest(path), options)


def _python(source: Any, wanted: _Wanted) -> DataSet:
    name = source if isinstance(source, str) else getattr(source, "__qualname__", type(source).__name__)
    found = importable(source, "the data set") if isinstance(source, str) else source
    called = callable(found) and not isinstance(found, Iterable)
    if isinstance(found, Iterator):  # can be read once only
        found = [batch for _, batch in until(of_one(checked_batches(found, name)), wanted.tokens)]
    fit = fit_to(wanted.example, wanted.names, wanted.vocabulary, name)

    def batches() -> Iterator[Sourced]:
        raw = called_batches(found, name) if called else checked_batches(found, name)
        return until(of_one(map(fit, raw)), wanted.tokens)

    options = {"limit": wanted.tokens}
    if called:
        return DataSet("callable", name, batches, lambda: None, options)
    return _first(DataSet("batches", name, batches, lambda: batches_digest(batch for _, batch in batches()), options))


def _first(data: DataSet) -> DataSet:
    """The same data, after its first batch was read: what is wrong there is said at once."""
    next(iter(data))
    return data


def _file_digest(path: Path) -> Callable[[], str]:
    """Of the file as it is when first asked: a long run says at its end what it said at its beginning."""

    @cache
    def digest() -> str:
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"

    return digest
