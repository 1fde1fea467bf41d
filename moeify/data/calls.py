"""Batches that come from Python: a callable that yields them, or an iterable in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from moeify.data.data_set import as_batch, batch_tensors
from moeify.data.importable import one_line
from moeify.errors import InputError, MoeifyError
from moeify.ir.model_graph import Batch


def called_batches(source: Callable[[], Any], where: str) -> Iterator[Batch]:
    """Calls the source and yields its batches. Raises InputError where it fails or gives something else."""
    try:
        found = source()
    except MoeifyError:
        raise
    except Exception as error:
        raise InputError(f"{where}: the call failed: {one_line(error)}") from error
    yield from checked_batches(found, where)


def checked_batches(found: Any, where: str) -> Iterator[Batch]:
    """The batches of an iterable, each a dict or a tuple with at least one row. Raises InputError."""
    if not isinstance(found, Iterable) or isinstance(found, str | bytes | dict | torch.Tensor):
        raise InputError(f"{where}: must give an iterable of batches, not {type(found).__name__}")
    iterator = iter(found)
    index = 0
    while True:
        try:
            value = next(iterator)
        except StopIteration:
            return
        except MoeifyError:
            raise
        except Exception as error:
            raise InputError(f"{where}: failed at batch {index}: {one_line(error)}") from error
        yield as_batch(value, f"{where}, batch {index}")
        index += 1


def batches_digest(batches: Iterable[Batch]) -> str:
    """A digest of the names, shapes and values of all tensors."""
    digest = hashlib.sha256()
    for batch in batches:
        for name, tensor in batch_tensors(batch).items():
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"
