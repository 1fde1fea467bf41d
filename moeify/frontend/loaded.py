"""A model that has come in: the module, inputs to trace it with, and where it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from moeify.ir.model_graph import Batch

SourceKind = Literal["huggingface", "adapter", "gguf", "state-dict", "module-file", "exported-program", "onnx", "module"]


@dataclass(frozen=True)
class SourceInfo:
    """Where a model came from, without a word about the machine that it was read on.

    name: the file's or folder's base name, or the class of a module in memory. digests: file name (for ONNX the path relative
    to the graph's folder) -> sha256, hexadecimal. factory: the name of the callable that built the module, where it has one.
    model_class: import path; for a class of transformers `transformers.<class>`.
    """

    kind: SourceKind
    name: str
    model_class: str
    digests: Mapping[str, str] = field(default_factory=dict)
    factory: str | None = None


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A dense model in eval mode, with one batch of inputs. tokenizer: transformers' own, or None.

    path: what it was read from, or None. files: small files that go along as they are (preprocessor_config.json, the module
    without its weights, inputs that were assumed). notes: what the user should know, one sentence each. mapped: the weights lie
    in their files, in the number type that they have there, and take memory only while they are looked at.
    """

    model: nn.Module
    example: Batch
    source: SourceInfo
    tokenizer: Any | None = None
    path: Path | None = None
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    mapped: bool = False

    def save_source(self, folder: Path) -> None:
        """Writes what an equal dense skeleton can be built from into `folder`: config, generation config and tokenizer of a
        model of transformers, and `files`.

        Nothing is written for a model that only its factory can build.
        """
        of_transformers = self.source.model_class.startswith("transformers.")
        if of_transformers or self.files or self.tokenizer is not None:
            folder.mkdir(parents=True, exist_ok=True)
        if of_transformers:
            self._save_configs(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)

    def _save_configs(self, folder: Path) -> None:
        model: Any = self.model
        model.config.save_pretrained(folder)
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(folder)


def file_digest(path: Path) -> str:
    """The sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
