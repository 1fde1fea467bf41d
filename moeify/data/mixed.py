"""Several sources as one: their batches in turn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from moeify.data.data_set import DataSet, Sourced, until
from moeify.ir.model_graph import Batch


def sources_of(source: Any) -> tuple[Any, ...]:
    """The sources that a list or tuple of files and names holds; anything else, batches in memory too, is one source."""
    several = isinstance(source, list | tuple) and bool(source) and all(isinstance(part, str | Path) for part in source)
    return tuple(source) if several else (source,)


def mixed(parts: Sequence[DataSet], tokens: int | None) -> DataSet:
    """The data sets as one of kind "mixed": a batch of each in turn, until all are at their ends or `tokens` are reached (at
    the end of a batch). A shorter one ends, and the others go on.

    Its digest is one over theirs, in order; None where one has none. Iterating raises what the parts raise.
    """

    def source() -> Iterator[Sourced]:
        return until(in_turn(parts), tokens)

    def digest() -> str | None:
        return _digest([part.digest() for part in parts])

    return DataSet("mixed", " + ".join(part.name for part in parts), source, digest, {"limit": tokens}, tuple(parts))


def in_turn(parts: Iterable[Iterable[Batch]]) -> Iterator[Sourced]:
    """A batch of each part in turn; those that are at their end are passed over."""
    left = [(number, iter(part)) for number, part in enumerate(parts)]
    while left:
        going = []
        for number, batches in left:
            for batch in batches:
                yield number, batch
                going.append((number, batches))
                break
        left = going


def _digest(digests: Sequence[str | None]) -> str | None:
    whole = hashlib.sha256()
    for digest in digests:
        if digest is None:
            return None
        whole.update(f"{digest}\n".encode())
    return f"sha256:{whole.hexdigest()}"
