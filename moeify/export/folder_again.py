"""A model that was loaded from an output folder, and changed since, as a folder again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from torch import nn

from moeify.errors import UsageError
from moeify.export.atomic import whole_folder
from moeify.export.folder import check_apart, verify_files, write_manifest
from moeify.export.folder_weights import write_weights
from moeify.export.manifest import read_manifest
from moeify.frontend.load_checks import some
from moeify.layers.budget import moe_layers

#: What says how the model was made.
_KEPT = ("recipe.toml", "report.json")


def resave_folder(model: nn.Module, like: Path, output: Path, *, force: bool) -> Path:
    """Writes a model that came from the folder `like`, as it is now; recipe, report and source are that folder's own.

    Raises UsageError for a model that is not of that folder, InputError where it is damaged, OutputError as `save_folder`.
    """
    manifest = read_manifest(like)
    if manifest.source.kind == "onnx":
        raise UsageError(
            f"{like}: is of an ONNX file, which is not written a second time: export it (moeify export, moeify.export)"
        )
    found = {layer.origin.path: layer for layer in moe_layers(model).values() if layer.origin is not None}
    if found.keys() != manifest.layers.keys():
        raise UsageError(
            f"{like}: is not what the model came from: its MoE layers are {some(list(manifest.layers))}, "
            f"the model's {some(list(found)) or 'none'}"
        )
    check_apart(output, like)
    kept = {name: digest for name, digest in manifest.digests.items() if name in _KEPT or name.startswith("source/")}
    verify_files(like, kept)
    layers = {path: replace(entry, config=found[path].config) for path, entry in manifest.layers.items()}
    with whole_folder(output, force) as folder:
        aliases = write_weights(model, folder)
        for name in kept:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(like / name, folder / name)
        write_manifest(folder, model, manifest.source, layers, aliases)
    return output
