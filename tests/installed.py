"""Packages that are installed as far as their metadata say: what offers passes and strategies."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parent.parent / "examples" / "plugin"

Points = Mapping[str, Mapping[str, str]]


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, package: str, points: Points, version: str = "1.0") -> None:
    """points: entry-point group -> name -> `module:Class`. Modules that lie in the folder can be imported."""
    info = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n", "utf-8")
    lines = [f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in names.items()) for group, names in points.items()]
    (info / "entry_points.txt").write_text("\n".join(lines), "utf-8")
    monkeypatch.syspath_prepend(str(folder))


def install_example(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package of examples/plugin, from where it lies."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text("utf-8"))["project"]
    install(folder, monkeypatch, project["name"], project["entry-points"], project["version"])
