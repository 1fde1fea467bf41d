"""Finished layers in files: a model that is bigger than memory is converted layer by layer, and none of it stays in memory."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from moeify.data.mapped_pages import let_go
from moeify.errors import OutputError
from moeify.layers.moe_layer import MoELayer


def shelved(layer: MoELayer, path: str, folder: Path) -> MoELayer:
    """The layer with its tensors in a file of the folder, mapped from there. path: the site's, which names the file.

    torch's own format, for it starts every tensor at a multiple of 64 bytes, as memory does: sums are made in the same order.
    Raises OutputError where the disk takes no more. A layer on another device than the CPU stays as it is.
    """
    state = layer.state_dict()
    if any(tensor.device.type != "cpu" for tensor in state.values()):
        return layer
    file = folder / f"weights-{hashlib.sha256(path.encode()).hexdigest()[:16]}.pt"
    part = file.with_suffix(".part")
    try:
        with part.open("wb") as stream:  # by its path torch would write it with errors of its own, which do not say why
            torch.save(state, stream)
        part.rename(file)
    except (OSError, RuntimeError) as error:
        raise OutputError(f"{folder.parent}: a finished layer cannot be written: {_reason(error)}") from error
    layer.load_state_dict(torch.load(file, mmap=True, weights_only=True), assign=True)
    let_go(layer.parameters())
    return layer


def _reason(error: BaseException) -> str:
    """What the system said first: torch's writer stumbles over the rest of a file that could not be written."""
    first: BaseException | None = error
    while first is not None and not isinstance(first, OSError):
        first = first.__context__
    return (first.strerror if isinstance(first, OSError) else None) or " ".join(str(error).split())
