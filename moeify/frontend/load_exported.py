"""A torch.export archive (.pt2): the program as a module, with its own sample inputs."""

from __future__ import annotations

import io
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import fx, nn

from moeify.data.importable import one_line
from moeify.errors import InputError, MissingExtraError
from moeify.frontend.exported_archive import Archive, open_archive
from moeify.frontend.load_checks import check_finite
from moeify.frontend.load_example import ASSUMED
from moeify.frontend.loaded import LoadedModel, SourceInfo, file_digest
from moeify.frontend.trace_export import quiet_export
from moeify.ir.model_graph import Batch

#: The file's name in a folder's source/: the archive without its weights.
NAME = "program.pt2"

_NOTE = (
    "{}: an exported program is the graph of eval mode and nobody's class: gradients pass, but .train() is refused; convert "
    "the module itself to train it"
)


def load_exported(path: Path, dtype: torch.dtype) -> LoadedModel:
    """The program of the archive as a module, in its own number types; without an example where the archive has none.

    Raises InputError for damage, and for an archive that could run code (see `exported_archive`).
    """
    archive = open_archive(path)
    model, example = _load(archive)
    check_dtype(model, dtype, path)
    check_finite(model, str(path))
    files = {NAME: _without_weights(archive)} | ({} if not example else {ASSUMED: _saved(example)})
    source = SourceInfo("exported-program", path.name, "torch.export.ExportedProgram", {path.name: file_digest(path)})
    return LoadedModel(model, example, source, path=path, files=files, notes=(_NOTE.format(path.name),))


def read_exported(path: Path) -> nn.Module:
    """The module of an archive without its weights: zeros stand for them. Raises as `load_exported`."""
    return _load(open_archive(path))[0]


def exported_outline(path: Path) -> tuple[nn.Module, Batch]:
    """The module on the meta device and its sample inputs, no weight read. Raises as `load_exported`."""
    archive = open_archive(path, sums=False)
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / path.name
        bare.write_bytes(_without_weights(archive, outline=True))
        model, example = _load(replace(archive, path=bare))
    return model.to("meta"), example


def check_dtype(model: nn.Module, dtype: torch.dtype, path: Path) -> None:
    """Raises InputError where other numbers than the program's own are asked for (float32 is what everyone asks for)."""
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if dtype not in (own, torch.float32):
        names = (str(kind).removeprefix("torch.") for kind in (own, dtype))
        raise InputError("{}: is a program in {} and cannot be turned into {}; export the model in it".format(path, *names))


def _load(archive: Archive) -> tuple[nn.Module, Batch]:
    if b"transformers.modeling_outputs." in archive.read(archive.program):
        _register_outputs()
    try:
        with quiet_export():
            program = torch.export.load(archive.path)
            model = program.module(check_guards=False)  # the guards are Python source in the archive
    except Exception as error:  # torch raises errors of every kind for programs that it cannot read
        raise InputError(
            f"{archive.path}: torch.export cannot load it: {one_line(error)}; export the model again with this torch"
        ) from error
    _without_detach(model)
    model.train, model.eval = MethodType(_train, model), MethodType(_eval, model)  # type: ignore[method-assign]
    args, kwargs = program.example_inputs or ((), {})
    if args and kwargs:
        raise InputError(
            f"{archive.path}: takes positional and keyword arguments together; export the model with one kind of them"
        )
    return model, tuple(args) or dict(kwargs)


def _register_outputs() -> None:
    """transformers' outputs are known to torch once their module is imported."""
    try:
        import transformers.modeling_outputs  # noqa: F401  # its import is what is wanted
    except ImportError as error:
        raise MissingExtraError("transformers", "hf", "a program that gives outputs of transformers") from error


def _without_detach(model: fx.GraphModule) -> None:
    """In-place detaching of a constant, which torch.export cannot trace again, becomes the plain one."""
    for node in model.graph.nodes:
        if node.target is torch.ops.aten.detach_.default:
            node.target = torch.ops.aten.detach.default
    model.recompile()


def _train(model: nn.Module, mode: bool = True) -> nn.Module:
    if mode:
        raise NotImplementedError("an exported program is the graph of eval mode: it has no training mode")
    return nn.Module.train(model, False)  # MoE layers in it have one


def _eval(model: nn.Module) -> nn.Module:
    return nn.Module.train(model, False)


def _without_weights(archive: Archive, *, outline: bool = False) -> bytes:
    """The archive with empty weights, and without sample inputs, extra files and the traces of its author's files.

    outline: with the sample inputs, and all else on the meta device: zeros in place of the weights would take their memory."""
    empty = ("data/weights/weight_",) if outline else ("data/weights/weight_", "data/sample_inputs/")
    content = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(content)
    writer.set_min_version(6)  # as torch writes such archives: it decides where the version stands
    for member in archive.members:
        if member.startswith((".", "extra/")) or member == "byteorder":
            continue
        data = b"" if member.startswith(empty) else archive.read(member)
        if member == archive.program:
            data = json.dumps(_traceless(json.loads(data))).encode()
        if outline and member.endswith(".json"):
            data = data.replace(b'{"type": "cpu", "index": null}', b'{"type": "meta", "index": null}')
        writer.write_record(member, data, len(data))
    writer.write_end_of_file()
    return content.getvalue()


def _traceless(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: _traceless(value) for key, value in found.items() if key != "stack_trace"}
    return [_traceless(item) for item in found] if isinstance(found, list) else found


def _saved(example: Batch) -> bytes:
    content = io.BytesIO()
    torch.save(example, content)
    return content.getvalue()
