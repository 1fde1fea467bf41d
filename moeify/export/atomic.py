"""Results appear whole or not at all: they are written beside their target, flushed to disk, then renamed.

Work in progress lives in a hidden folder `.NAME.moeify-part-XXXX` beside the target. A killed run may leave one; it is never
taken for a result, and the next run with the same target removes it (a lock tells it from one that is still being written).
With `force` the old result is moved to `.NAME.moeify-old-XXXX` first and deleted after the rename: were the power cut
between two renames, it would still be there under that name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moeify.errors import OutputError

_PART = ".moeify-part-"
_OLD = ".moeify-old-"

#: The file that says of an exported folder what it is.
EXPORT = "moeify-export.json"

#: A folder is replaced only if it holds one of these: --force must not delete somebody's own.
_MARKS = ("moeify.json", EXPORT)


def check_target(target: Path, *, force: bool) -> None:
    """Raises OutputError where a result may not be written to `target`: call it before hours of work."""
    real = Path(os.path.realpath(target))
    with output_errors(target):
        parent = next((p for p in real.parents if p.exists()), real)
        holds_something = real.exists() and not (real.is_dir() and not any(real.iterdir()))
    if not parent.is_dir():
        raise OutputError(f"{target}: cannot be written, as {parent} is a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{target}: cannot be written, as {parent} is read-only; choose another place")
    if not holds_something:
        return
    if not force:
        raise OutputError(f"{target}: exists already; choose another name, or pass --force to replace it")
    here = Path(os.path.realpath(Path.cwd()))
    if real.is_dir() and (real == Path(os.path.realpath(Path.home())) or real == here or real in here.parents):
        raise OutputError(f"{target}: is not replaced even with --force, as it holds the current or the home directory")
    if real.is_dir() and not any((real / mark).is_file() for mark in _MARKS):
        raise OutputError(f"{target}: is not replaced even with --force, as moeify did not write it; remove it yourself")


@contextmanager
def whole_folder(target: Path, force: bool) -> Iterator[Path]:
    """Yields an empty folder to fill; when the block ends well it stands at `target`.

    Raises OutputError in one line where the target exists (without `force`), or the disk is full or not writable; whatever
    was raised, Ctrl-C included, the target is as it was before and the unfinished folder is gone.
    """
    with _whole(target, force, folder=True) as part:
        part.mkdir()
        yield part


@contextmanager
def whole_file(target: Path, force: bool) -> Iterator[Path]:
    """Yields the path of a file to create; when the block ends well it stands at `target`. Raises as `whole_folder`."""
    with _whole(target, force, folder=False) as part:
        yield part


@contextmanager
def _whole(target: Path, force: bool, *, folder: bool) -> Iterator[Path]:
    check_target(target, force=force)
    real = Path(os.path.realpath(target))
    if real.exists() and real.is_dir() != folder:
        raise OutputError(f"{target}: is a {'file' if folder else 'folder'}; choose another name")
    with output_errors(target):
        real.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(real)
        with _scratch(real) as scratch:
            part = scratch / real.name
            yield part
            _flush(part)
            _put(part, real, force)
            flush(real.parent)


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A hidden locked folder beside the target, removed in the end."""
    folder = target.parent / f".{target.name}{_PART}{secrets.token_hex(4)}"
    lock = None
    try:  # from before the folder is there: an interrupt may come at any moment
        folder.mkdir()
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder.mkdir(exist_ok=True)  # another run may have taken it for a stale one before the lock was ours
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_stale(target: Path) -> None:
    for folder in target.parent.glob(f".{_escaped(target.name)}{_PART}*"):
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass  # another run is writing it
        finally:
            os.close(lock)


def _put(part: Path, target: Path, force: bool) -> None:
    """Renames `part` to `target`; what stands there moves aside first, and comes back when the rename fails."""
    if not force or not target.exists():
        if target.is_file():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        part.rename(target)  # a folder takes the place of nothing, or of an empty folder
        return
    old = target.parent / f".{target.name}{_OLD}{secrets.token_hex(4)}"
    try:
        target.rename(old)
        part.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    if old.is_dir():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink()


def _flush(part: Path) -> None:
    for path in sorted(part.rglob("*")) if part.is_dir() else []:
        flush(path)
    flush(part)


def flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


@contextmanager
def output_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise OutputError(f"{target}: has appeared while the result was written; choose another name") from error
        elsewhere = error.filename and _PART not in str(error.filename) and str(error.filename) != str(target)
        where = f" ({error.filename})" if elsewhere else ""
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}{where}") from error
