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
        torch.save(state, part)
        part.rename(file)
    except (OSError, RuntimeError) as error:  # torch's writer has errors of its own for a full disk
        raise OutputError(f"{folder.parent}: a finished layer cannot be written: {' '.join(str(error).split())}") from error
    layer.load_state_dict(torch.load(file, mmap=True, weights_only=True), assign=True)
    let_go(layer.parameters())
    return layer
