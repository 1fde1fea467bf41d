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
    if path.is_file():
        return None if file_digest(path) in info.digests.values() else path  # under whatever name
    names = [name for name in info.digests if info.kind != "adapter" or (path / name).exists()]
    files = (path / name for name in names)
    return next((file for file in files if not file.is_file() or file_digest(file) != info.digests[file.name]), None)
