"""What kind of data a file holds: its first bytes decide, then its suffix."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Literal

from moeify.errors import InputError

FileKind = Literal["text", "jsonl", "pt", "npz", "npy", "safetensors"]

READABLE = 'text (.txt), .jsonl with a field "text", or tensors (.pt, .npz, .safetensors)'
_HEAD = 4096
_TENSOR_SUFFIXES = {".pt": "pt", ".pth": "pt", ".npz": "npz", ".npy": "npy", ".safetensors": "safetensors"}
_NOT_PLAIN_TEXT = {
    ".json",
    ".csv",
    ".tsv",
    ".xml",
    ".html",
    ".parquet",
    ".arrow",
    ".onnx",
    ".gguf",
    ".bin",
    ".gz",
    ".bz2",
    ".xz",
}


def kind_of(path: Path) -> FileKind:
    """The kind of data in that file. Raises InputError where there is none, where it is empty or of no known kind."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name one file: {READABLE}")
    if not path.exists():
        raise InputError(f"{path}: no such file; data is {READABLE}, or package.module:callable")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if not head:
        raise InputError(f"{path}: is empty; data is {READABLE}")
    kind = _by_magic(path, head) or _by_suffix(path, head)
    if kind is None:
        raise InputError(f"{path}: holds no data that moeify reads; data is {READABLE}")
    return kind


def _by_magic(path: Path, head: bytes) -> FileKind | None:
    if head.startswith(b"PK\x03\x04"):
        try:
            names = zipfile.ZipFile(path).namelist()
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError) as error:
            raise InputError(f"{path}: is damaged or cut short ({error}); write it again") from error
        if any(name.endswith("data.pkl") for name in names):
            return "pt"
        return "npz" if names and all(name.endswith(".npy") for name in names) else None
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "pt"
    return "safetensors" if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32 else None


def _by_suffix(path: Path, head: bytes) -> FileKind | None:
    suffix = path.suffix.lower()
    if suffix in _TENSOR_SUFFIXES:
        raise InputError(f"{path}: is damaged, or no {suffix} file at all; write it again")
    if suffix in (".txt", ".jsonl", ".ndjson"):
        if b"\0" in head:
            raise InputError(f"{path}: is not UTF-8 text (found the byte 0x00); convert it, for instance with iconv")
        return "text" if suffix == ".txt" else "jsonl"
    if suffix in _NOT_PLAIN_TEXT or b"\0" in head or not _decodes(head):
        return None
    line, whole, _ = head.partition(b"\n")
    return "jsonl" if (_is_object(line) if whole else line.startswith(b'{"')) else "text"


def _decodes(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start >= _HEAD - 3  # a character cut in two by the end of the head
    return True


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
