"""Files out of packages: checked before they are used, cached whole or not at all. A script plays the package's client."""

from __future__ import annotations

import hashlib
import sys
import tarfile
from pathlib import Path

import pytest

from moeify.errors import InputError
from package_files import Package, cached, unpacked


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """A package of npm with two files, one of them wanted; `npm` hands it out and notes that it was asked."""
    (tmp_path / "wanted.json").write_text("1")
    archive = tmp_path / "numbers-1.0.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "wanted.json", "package/dist/wanted.json")
        tar.add(tmp_path / "wanted.json", "package/other.json")
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(
        f"#!{sys.executable}\nimport shutil, sys\n"
        f"open({str(tmp_path / 'asked')!r}, 'a').write(sys.argv[-1] + '\\n')\n"
        f"shutil.copy({str(archive)!r}, sys.argv[sys.argv.index('--pack-destination') + 1])\n"
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(npm.parent))
    monkeypatch.setenv("MOEIFY_CACHE", str(tmp_path / "cache"))
    return Package("numbers", "1.0", hashlib.sha256(archive.read_bytes()).hexdigest(), "package/dist/", "npm")


def test_what_is_wanted_is_fetched_once(package: Package, tmp_path: Path) -> None:
    folder = unpacked(package)
    assert unpacked(package) == folder == tmp_path / "cache" / "numbers-1.0"
    assert [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()] == ["package/dist/wanted.json"]
    assert (tmp_path / "asked").read_text() == "numbers@1.0\n"


def test_another_digest_is_refused(package: Package, tmp_path: Path) -> None:
    other = Package("numbers", "1.0", "0" * 64, "package/dist/", "npm")
    with pytest.raises(InputError, match=f"numbers-1.0.tgz has the sha256 {package.sha256}, 0000"):
        unpacked(other)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_client_that_is_not_there_is_named(package: Package, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"numbers==1\.0 is fetched by npm, which is not installed"):
        unpacked(package)


def test_what_the_client_says_is_said(package: Package, tmp_path: Path) -> None:
    (tmp_path / "bin" / "npm").write_text("#!/bin/sh\necho working >&2\necho no such package >&2\nexit 1\n")
    with pytest.raises(InputError, match=r"npm cannot fetch numbers==1\.0: no such package; check the network"):
        unpacked(package)


def test_a_folder_that_was_not_finished_is_not_there(package: Package, tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached("half", write)
    assert list((tmp_path / "cache").iterdir()) == []
