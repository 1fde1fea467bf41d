"""The two files of a benchmark: a converted folder and its dense model, exported alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from moeify.api.arguments import Data, Example, Factory, Source, dense_model, example_of, open_batches
from moeify.errors import InputError
from moeify.export.folder import load_folder
from moeify.export.manifest import Manifest, read_manifest
from moeify.export.onnx.exporting import export_onnx
from moeify.export.onnx.model_interface import model_interface
from moeify.export.onnx.report import OnnxReport
from moeify.frontend.recorded_source import differing, recorded_source
from moeify.ir.model_graph import Batch
from moeify.measure.outputs import token_ids, vocabulary_of
from moeify.pipeline.context import Progress
from moeify.speed.eager_work import eager_work
from moeify.speed.measuring import Form, Subject
from moeify.speed.settings import Settings
from moeify.speed.workload import Array, Workload

#: Tokens of `data` that runs are cut from.
_TEXT = 1 << 16


@dataclass(frozen=True, eq=False)
class Pair:
    """model: the converted one, eager. written: its file's report. text: ids that runs are cut from, or None."""

    name: str
    model: nn.Module
    example: Batch
    written: OnnxReport
    dense: Path
    converted: Path
    text: Array | None
    notes: tuple[str, ...]

    def subject(self, settings: Settings) -> Subject:
        """Runs the eager model once at every place, for the work of each."""
        interface = model_interface(self.model, self.example)
        workload = Workload(
            like={name: tensor.numpy() for name, tensor in zip(interface.inputs, interface.example)},
            dims={port.name: port.dims for port in self.written.inputs},
            cached=bool(interface.cache_layers),
            vocabulary=vocabulary_of(self.model),
            text=self.text,
        )
        places = settings.places(cached=workload.cached)
        found = eager_work(self.model, interface, workload, places, settings.seed)
        forms = {"dense": Form(self.dense, dense=True), "converted": Form(self.converted)}
        return Subject(self.name, forms, workload, lambda place, form: getattr(found[place], form), places)


def open_pair(
    folder: Path,
    dense: Source | None,
    files: Path,
    *,
    precision: str,
    data: Data | None,
    factory: Factory | None,
    example: Example | None,
    allow_pickle: bool,
    progress: Progress,
) -> Pair:
    """Exports both into `files`; both models are in memory by the end."""
    source, note = _dense_source(folder, read_manifest(folder), dense)
    progress("loading both models", 0, None)
    found = load_folder(folder, factory=factory, dtype=torch.float32, allow_pickle=allow_pickle)
    batch = example_of(found, example)
    text = None if data is None else _text(open_batches(data, found.model, found.tokenizer, batch, _TEXT), batch)
    loaded = dense_model(source, factory, batch, dtype=torch.float32, allow_pickle=allow_pickle)  # exports take minutes
    progress("exporting the converted model", 0, None)
    written = _export(found.model, batch, files / "converted.onnx", precision)
    progress("exporting the dense model", 0, None)
    other = _export(loaded.model, batch, files / "dense.onnx", precision)
    if other.inputs != written.inputs:
        raise InputError(f"{loaded.source.name}: takes other inputs than {folder}: give the dense model that it was made from")
    return Pair(
        folder.resolve().name, found.model, batch, written, files / "dense.onnx", files / "converted.onnx", text,
        () if note is None else (note,),
    )  # fmt: skip


def _export(model: nn.Module, example: Batch, path: Path, precision: str) -> OnnxReport:
    return export_onnx(model, example, path, precision=precision)


def _dense_source(folder: Path, manifest: Manifest, dense: Source | None) -> tuple[Source, str | None]:
    """The dense model, and what the reader should know about it. Raises InputError where it is not found."""
    if dense is None:
        return recorded_source(manifest.source, (folder.absolute().parent, Path.cwd())), None
    if isinstance(dense, nn.Module):
        return dense, None
    path = Path(dense).expanduser()
    if path.exists() and (other := differing(manifest.source, path)) is not None:
        return dense, f"{other} is not what {folder} was made from (sha256): the dense model is another one"
    return dense, None


def _text(batches: Any, example: Batch) -> Array:
    """All ids in a row. Raises InputError for data, or a model, without."""
    found = [ids.flatten().numpy() for batch in batches if (ids := token_ids(batch)) is not None]
    if not found:
        raise InputError("the data has no token ids to cut runs from: leave it out, and inputs are drawn")
    return np.concatenate(found)
