"""What a path holds, told by its content: names and suffixes are hints that may lie."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Literal

from moeify.errors import InputError

#: "pickle" is a torch.save file of before torch 1.6, or any other pickle; "zip" one that torch.save did not write.
Kind = Literal[
    "converted", "huggingface", "adapter", "folder", "gguf", "safetensors", "torch", "torchscript", "exported-program",
    "pickle", "zip", "onnx", "unknown",
]  # fmt: skip

#: A safetensors header of more bytes is refused by the format's own reader.
_LONGEST_HEADER = 100_000_000

#: Suffixes of files: a path that ends so is no name on the hub.
_FILES = frozenset({".pt", ".pth", ".bin", ".safetensors", ".gguf", ".onnx", ".pt2"})

_ONNX_FIELDS = {b"\x12", b"\x1a", b"\x22", b"\x28", b"\x32", b"\x3a", b"\x42"}


def sniff(path: Path) -> Kind:
    """The kind of what stands at `path`. No more than the file's first bytes, or a zip's directory, is read.

    Raises InputError for a path that does not exist, cannot be read, or is an empty file.
    """
    try:
        if path.is_dir():
            return _folder_kind(path)
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: no such file or folder; models are read from disk, nothing is downloaded{_hub(path)}"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not head:
        raise InputError(f"{path}: is an empty file; copy or download it again")
    return _zip_kind(path) if head.startswith(b"PK") else _file_kind(head)


def _hub(path: Path) -> str:
    """What to do where the path reads like a model's name on the Hugging Face hub."""
    name = re.fullmatch(r"[\w.-]+/([\w.-]+)", str(path))
    if name is None or Path(name[1]).suffix in _FILES:
        return ""
    return f": hf download {path} --local-dir {name[1]}, then give the folder {name[1]}"


def _folder_kind(path: Path) -> Kind:
    if (path / "moeify.json").is_file():
        return "converted"
    if (path / "adapter_config.json").is_file():
        return "adapter"
    return "huggingface" if (path / "config.json").is_file() else "folder"


def _file_kind(head: bytes) -> Kind:
    if head.startswith(b"GGUF"):
        return "gguf"
    if 0 < int.from_bytes(head[:8], "little") <= _LONGEST_HEADER and head[8:9] == b"{":
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    # An ONNX ModelProto begins with field 1 (ir_version, a small number), then one of its fields 2 to 8.
    if head[:1] == b"\x08" and 0 < int.from_bytes(head[1:2]) < 64 and head[2:3] in _ONNX_FIELDS:
        return "onnx"
    return "unknown"


def _zip_kind(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()} | set(archive.namelist())
            if min((part.header_offset for part in archive.infolist()), default=0):
                raise ValueError("it ends inside of an archive that it holds")
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: is a damaged or truncated zip archive ({error}); copy or download it again") from error
    if "archive_format" in names or "serialized_exported_program.json" in names:
        return "exported-program"
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        return "torchscript"
    return "torch" if "data.pkl" in names else "zip"
