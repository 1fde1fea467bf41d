"""The model that a folder was converted from, where it still lies beside it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from moeify.errors import InputError
from moeify.frontend.loaded import SourceInfo, file_digest


def recorded_source(info: SourceInfo, places: Iterable[Path]) -> Path:
    """What has the recorded name in one of the places, and the recorded digests.

    Raises InputError where there is none: the name, what was found instead, and what to do.
    """
    other = None
    for path in dict.fromkeys((place / info.name).absolute() for place in places):
        if not path.exists() or not info.digests:
            continue
        other = differing(info, path)
        if other is None:
            return path
    if other is None:
        reason = f"the model that it was made from, {info.name}, is not beside it" if info.digests else "it was made in memory"
        raise InputError(f"{reason}: give the dense model (--dense, dense=)")
    raise InputError(f"{other}: is not what the folder was made from (sha256): give the dense model (--dense, dense=)")


def differing(info: SourceInfo, path: Path) -> Path | None:
    """The first file of the model at `path` that is missing or not as recorded; None where all are. What an adapter's base
    model holds is not looked at."""
    digests = dict(info.digests)
    if path.is_file():
        if file_digest(path) not in digests.values():  # under whatever name
            return path
        if info.kind != "onnx":
            return None
        digests.pop(info.name, None)  # what is left holds its weights, beside it
        path = path.parent
    names = [name for name in digests if info.kind != "adapter" or (path / name).exists()]
    return next((path / name for name in names if not _is_as_recorded(path / name, digests[name])), None)


def _is_as_recorded(file: Path, digest: str) -> bool:
    return file.is_file() and file_digest(file) == digest
