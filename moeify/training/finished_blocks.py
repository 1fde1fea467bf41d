"""Blocks that are finished, in a folder: a training that was ended early goes on after them.

    FOLDER/block-<sha256>.safetensors    one block: the layer's tensors, its report as JSON in the header

The name is a digest of all that the block depends on, so that one of other settings, data or weights is never taken for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from moeify.export.atomic import output_errors, whole_file
from moeify.layers.moe_layer import MoELayer
from moeify.training.block_training import BlockReport


class FinishedBlocks:
    """folder: None: nothing is kept. about: gives what every block depends on, as JSON values. chained: each also depends on
    those that were trained before it. Raises OutputError where the folder cannot be made."""

    def __init__(self, folder: str | Path | None, about: Callable[[], Mapping[str, Any]], *, chained: bool) -> None:
        self._folder, self._chained, self._key = None if folder is None else Path(folder), chained, ""
        if self._folder is not None:
            self._key = hashlib.sha256(json.dumps(about(), sort_keys=True).encode()).hexdigest()
            with output_errors(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)

    def find(self, path: str, layer: MoELayer) -> BlockReport | None:
        """Gives the layer the weights that it was finished with; None where it was not, or its file is damaged."""
        if self._folder is None:
            return None
        with suppress(OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
            with safe_open(self._file(path), framework="pt") as file:
                report = BlockReport(**json.loads(file.metadata()["report"]))
                state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # it is no mapping
            layer.load_state_dict(state)
            return replace(report, resumed=True)
        return None

    def keep(self, path: str, layer: MoELayer, report: BlockReport) -> None:
        """Raises OutputError where the disk takes no more."""
        if self._folder is not None:
            state = {name: value.detach().contiguous() for name, value in layer.state_dict().items()}
            with whole_file(self._file(path), force=True) as part:
                save_file(state, part, {"report": json.dumps(asdict(report))})

    def leave(self, path: str) -> None:
        """The block is done, one way or the other."""
        if self._chained:
            self._key = self._digest(path)

    def _file(self, path: str) -> Path:
        assert self._folder is not None
        return self._folder / f"block-{self._digest(path)}.safetensors"

    def _digest(self, path: str) -> str:
        return hashlib.sha256(f"{self._key}/{path}".encode()).hexdigest()


def weights_digest(*tensors: Mapping[str, Tensor]) -> str:
    """A digest of the names, shapes and values of all tensors."""
    digest = hashlib.sha256()
    for named in tensors:
        for name, value in sorted(named.items()):
            digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
