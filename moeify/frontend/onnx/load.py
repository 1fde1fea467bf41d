"""A dense ONNX file as a model: read, tried on one batch, cut at its feed-forward networks."""

from __future__ import annotations

import io
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from moeify.errors import InputError, MissingExtraError, MoeifyError
from moeify.frontend.load_checks import is_finite
from moeify.frontend.load_example import ASSUMED
from moeify.frontend.load_huggingface import TOKENIZER_FILES, tokenizer_in
from moeify.frontend.load_quietly import quiet_transformers
from moeify.frontend.loaded import LoadedModel, SourceInfo, file_digest
from moeify.frontend.onnx.file import BESIDE, OPSET, RAISED, read_onnx
from moeify.frontend.onnx.inputs import Ports, made_up
from moeify.frontend.onnx.model import OnnxModel
from moeify.frontend.onnx.segment import first_line
from moeify.frontend.onnx.sites import find_sites
from moeify.frontend.onnx.values import all_values
from moeify.ir.model_graph import Batch
from moeify.runtime.session import session

if TYPE_CHECKING:
    import onnx_ir as ir


def load_onnx(path: Path, dtype: torch.dtype) -> LoadedModel:
    """The model of an ONNX file, without example inputs, not cut yet. A tokenizer is one whose files stand beside the file, or
    one folder up where that is called onnx.

    Raises InputError as `read_onnx`, and for another dtype than float32.
    """
    if dtype != torch.float32:
        kind = str(dtype).removeprefix("torch.")
        raise InputError(
            f"{path}: an ONNX file is converted in float32, not in {kind}: leave out --dtype, and round the result"
        )
    graph = read_onnx(path)
    if any(node.domain == "moeify" for node in graph.graph):
        raise InputError(f"{path}: is a converted model already: give the dense file")
    model = _model(graph, path)
    tokenizer, note = _tokenizer(path)
    source = SourceInfo("onnx", path.name, "onnx.ModelProto", _digests(path, graph))
    return LoadedModel(model, (), source, tokenizer, path, notes=() if note is None else (note,))


def _model(graph: ir.Model, path: Path) -> OnnxModel:
    try:
        return OnnxModel(graph, Ports.of(graph, str(path)))
    except MoeifyError:
        raise
    except Exception as error:  # a tensor with another number of values than its shape says raises what NumPy raises
        raise InputError(f"{path}: is damaged: {first_line(error)}") from error


def with_onnx_inputs(loaded: LoadedModel, example: Batch | None) -> LoadedModel:
    """The model with that batch, or one that its declared inputs tell, and cut at its feed-forward networks.

    Raises InputError where the batch does not fit or ONNX Runtime cannot run the model on it.
    """
    model, where = loaded.model, str(loaded.path)
    assert isinstance(model, OnnxModel)
    if isinstance(example, dict):
        model.ports = Ports.of(model.graph, where, named=example)
    batch = made_up(model.graph, model.ports, where) if example is None else _named(example, model.ports, where)
    values = all_values(model, batch, where, given=example is not None)
    found = find_sites(model, values)
    for site in found.sites:
        for role, handle in site.rowwise().items():
            if not is_finite(handle.read()):
                raise InputError(
                    f"{where}: {site.path}: its {role} weights hold NaN or infinite values; export the model again"
                )
    model.found = found
    _check_raised(model, batch, where)
    return replace(loaded, example=batch, files={**loaded.files, ASSUMED: _saved(batch)})


def _check_raised(model: OnnxModel, batch: dict[str, Tensor], where: str) -> None:
    """Raises InputError where the graph computes something else since its opset was raised."""
    if (opset := model.graph.meta.get(RAISED)) is None:
        return
    original = session(where)
    names = [str(value.name) for value in original.get_outputs()]
    feeds = {name: tensor.numpy() for name, tensor in model.ports.complete(batch).items()}
    found = model(**batch)
    for name, value in zip(names, original.run(names, feeds)):
        expected = torch.from_numpy(np.asarray(value)).double()
        if not torch.allclose(found[name].double(), expected, rtol=1e-4, atol=1e-4 * _largest(expected), equal_nan=True):
            raise InputError(
                f"{where}: computes another {name} since its opset was raised from {opset} to {OPSET}: export it again in "
                f"opset {OPSET}"
            )


def _largest(value: Tensor) -> float:
    finite = value[value.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _saved(batch: Batch) -> bytes:
    content = io.BytesIO()
    torch.save(batch, content)
    return content.getvalue()


def _named(example: Batch, ports: Ports, where: str) -> dict[str, Tensor]:
    found = dict(example) if isinstance(example, dict) else dict(zip(ports.fed, example))
    given = len(example)
    if set(found) != set(ports.fed) or given != len(ports.fed):
        listed = ", ".join(found) if isinstance(example, dict) else f"{given} values"
        raise InputError(f"{where}: its inputs are {', '.join(ports.fed)}; the example holds {listed}")
    return {name: torch.as_tensor(found[name]) for name in ports.fed}


def _digests(path: Path, graph: ir.Model) -> dict[str, str]:
    """Of the file, and of those that hold its weights, by their paths relative to its folder."""
    beside: dict[str, Path] = graph.meta[BESIDE]
    return {path.name: file_digest(path)} | {name: file_digest(file) for name, file in beside.items()}


def _tokenizer(path: Path) -> tuple[Any | None, str | None]:
    folders = [path.absolute().parent]
    folders += [folders[0].parent] if folders[0].name == "onnx" else []
    folder = next((f for f in folders if any((f / name).is_file() for name in TOKENIZER_FILES)), None)
    if folder is not None:
        with suppress(MissingExtraError), quiet_transformers("a tokenizer") as transformers:
            return tokenizer_in(transformers, path, folder)
    return None, None
