"""A checkpoint of transformers, written tensor by tensor: no more of it is in memory than one file holds.

    model.safetensors                    everything
    model-00001-of-00003.safetensors     the first of three
    model.safetensors.index.json         which tensor is in which of them

Names and files are those of `save_pretrained`, which takes a whole model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from moeify.errors import ConversionError
from moeify.export.safetensors_file import write_safetensors

#: Files of transformers say so.
_ABOUT = {"format": "pt"}


def write_checkpoint(outline: Any, parts: Iterable[Mapping[str, Tensor]], folder: Path, most: int) -> None:
    """outline: the model on the meta device. parts: its tensors by their names in memory, those that are converted together (of
    one layer) in one part. most: bytes of tensors in a file; a tensor that is larger has one to itself.

    Raises ConversionError where they are not the tensors of the model.
    """
    files = _Files(folder, most)
    tied = set(outline._tied_weights_keys or ()) if outline.config.tie_word_embeddings else set()
    absent = {name: tensor.shape for name, tensor in outline.state_dict().items()}
    for part in parts:
        own = {name: tensor for name, tensor in part.items() if name not in tied}
        odd = [name for name, tensor in own.items() if absent.pop(name, None) != tensor.shape]
        if odd:
            raise ConversionError(f"{outline.config.model_type} has no such tensors: {', '.join(odd[:4])}")
        for name, tensor in _on_disk(outline, own).items():
            files.add(name, tensor.contiguous())
    if missing := sorted(absent.keys() - tied):
        raise ConversionError(f"{outline.config.model_type} has tensors that this model lacks: {', '.join(missing[:4])}")
    files.close()
    outline.config.architectures = [type(outline).__name__]
    outline.config.save_pretrained(folder)
    if outline.generation_config is not None:
        outline.generation_config.save_pretrained(folder)


def _on_disk(outline: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the names that they have in files, where experts may stand one by one."""
    from transformers.core_model_loading import revert_weight_conversion

    found: dict[str, Tensor] = revert_weight_conversion(outline, tensors)
    return found


class _Files:
    """Takes tensors, and writes a file whenever one is full."""

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most = folder, most
        self._held: dict[str, Tensor] = {}
        self._size = self._written = 0
        self._names: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        if self._held and self._size + tensor.nbytes > self._most:
            self._write()
        self._held[name] = tensor
        self._size += tensor.nbytes

    def _write(self) -> None:
        write_safetensors(self._held, self._part(len(self._names)), _ABOUT)
        self._names.append(list(self._held))
        self._written += self._size
        self._held, self._size = {}, 0

    def close(self) -> None:
        """The files get their names once it is known how many there are."""
        self._write()
        if (count := len(self._names)) == 1:
            self._part(0).rename(self._folder / "model.safetensors")
            return
        places: dict[str, str] = {}
        for i, names in enumerate(self._names):
            file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
            self._part(i).rename(self._folder / file)
            places |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._written}, "weight_map": places}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")

    def _part(self, index: int) -> Path:
        return self._folder / f"model-{index + 1:05d}.part"
