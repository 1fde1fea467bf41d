"""moeify.json, the contents of an output folder (format 1): written, and read back without trusting a field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from moeify.errors import InputError
from moeify.export.manifest_fields import Fields
from moeify.export.manifest_layers import LayerEntry, read_layer
from moeify.frontend.loaded import SourceInfo, SourceKind

FORMAT = 1
NAME = "moeify.json"

__all__ = ["FORMAT", "NAME", "LayerEntry", "Manifest", "json_text", "parse_manifest", "read_manifest"]


@dataclass(frozen=True)
class Manifest:
    """What an output folder holds.

    versions: package -> version that wrote it. digests: file (relative, with "/") -> sha256. dtype: of the model's weights.
    layers: in order of installation, by site path. aliases: name of a tied tensor -> the name that it is stored under.
    """

    source: SourceInfo
    dtype: torch.dtype
    layers: Mapping[str, LayerEntry]
    aliases: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The same text for the same contents."""
        return json_text(
            {
                "format": FORMAT,
                "versions": dict(self.versions),
                "digests": dict(self.digests),
                "source": asdict(self.source),
                "dtype": str(self.dtype).removeprefix("torch."),
                "layers": [entry.to_json(path) for path, entry in self.layers.items()],
                "aliases": dict(self.aliases),
            }
        )


def json_text(data: Any) -> str:
    """Indented JSON with sorted keys and a newline at the end."""
    return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an output folder. Raises InputError in one line: no such folder, none of ours, newer, or damaged."""
    path = folder / NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        absent = "is a file, not a folder" if folder.is_file() else "there is no such folder"
        reason = "is not an output folder of moeify (no moeify.json in it)" if folder.is_dir() else absent
        hint = (
            "give one that moeify convert wrote, or moeify import of a stock checkpoint"
            if (folder / "config.json").is_file()
            else "give one that moeify convert wrote"
        )
        raise InputError(f"{folder}: {reason}; {hint}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: is damaged ({' '.join(str(error).split())}); convert the model again") from error
    return parse_manifest(data, str(path))


def parse_manifest(data: Any, where: str) -> Manifest:
    """Raises InputError that names the first field which is missing, unknown or of the wrong type."""
    fields = Fields.of(data, where)
    number = fields.integer("format")
    if number > FORMAT:
        raise InputError(f"{where}: has format {number}, this moeify reads up to {FORMAT}; upgrade moeify to open it")
    if number != FORMAT:
        raise InputError(f"{where}: field format is {number}, known is {FORMAT}; convert the model again")
    fields.only("format", "versions", "digests", "source", "dtype", "layers", "aliases")
    layers = dict(read_layer(item) for item in fields.tables("layers"))
    if len(layers) != len(fields.tables("layers")):
        raise InputError(f"{where}: field layers names a path twice; convert the model again")
    digests = fields.texts("digests")
    for name in digests:
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise InputError(f"{where}: field digests names the file {name!r}, which is outside the folder")
    return Manifest(
        source=_source(fields.table("source")),
        dtype=_dtype(fields),
        layers=layers,
        aliases=fields.texts("aliases"),
        digests=digests,
        versions=fields.texts("versions"),
    )


def _source(fields: Fields) -> SourceInfo:
    fields.only("kind", "name", "model_class", "digests", "factory")
    return SourceInfo(
        kind=fields.choice("kind", get_args(SourceKind)),
        name=fields.text("name"),
        model_class=fields.text("model_class"),
        digests=fields.texts("digests"),
        factory=None if fields.is_null("factory") else fields.text("factory"),
    )


def _dtype(fields: Fields) -> torch.dtype:
    found = getattr(torch, fields.text("dtype"), None)
    if not isinstance(found, torch.dtype):
        raise InputError(
            f"{fields.where}: field dtype is {fields.text('dtype')!r}, not a dtype of torch; convert the model again"
        )
    return found
