"""Callables that tests name as `data.batches_for_tests:...`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

calls: list[int] = []


def ids() -> Iterator[dict[str, Any]]:
    calls.append(1)
    for start in (0, 8):
        yield {"input_ids": torch.arange(start, start + 8).reshape(2, 4)}


def fails_at_once() -> Iterator[Any]:
    raise RuntimeError("the disk\nis on fire")


def fails_later() -> Iterator[Any]:
    yield {"input_ids": torch.ones(1, 4, dtype=torch.int64)}
    raise RuntimeError("the second batch is lost")


def yields_nothing() -> Iterator[Any]:
    return iter(())


def yields_text() -> Iterator[Any]:
    yield "some text"


def yields_arrays() -> Iterator[Any]:
    yield {"input_ids": [[1, 2], [3, 4]]}


def gives_none() -> None:
    return None


def needs_an_argument(path: str) -> Iterator[Any]:
    yield path


number = 3
