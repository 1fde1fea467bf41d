"""The example plug-in, installed with pip into a virtual environment of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import torch

from cli.command_line import environment
from cli.small_files import FILES
from cli.tiny_models import TINY
from installed import PLUGIN


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the plug-in, and sees what this one has: torch is not installed twice."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    found = folder / "venv" / "bin" / "python"
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    here = sysconfig.get_paths()["purelib"]
    (packages / "outer.pth").write_text(f"import site; site.addsitedir({here!r})\n", "utf-8")
    shutil.copytree(PLUGIN, folder / "plugin", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    pip = [sys.executable, "-m", "pip", "--python", str(found), "install", "--quiet", "--no-index"]
    run([*pip, "--no-deps", "--no-build-isolation", str(folder / "plugin")], folder)
    return found


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_installed_plugin_converts(python: Path, tmp_path: Path) -> None:
    for name in ("model.pt", "rows.pt"):
        FILES[name](tmp_path / name)
    shutil.copy(PLUGIN / "pruned.toml", tmp_path)
    listed = json.loads(run([str(python), "-m", "moeify", "passes", "--json"], tmp_path))
    assert listed["faults"] == {}
    assert {p["name"]: p["package"] for p in listed["passes"]}["prune-experts"] == "moeify-example-plugin 0.1.0"
    line = f"convert model.pt {TINY} --recipe pruned.toml --experts 8 --top-k 2 --calibrate rows.pt -o out --json"
    done = json.loads(run([str(python), "-m", "moeify", *line.split()], tmp_path))
    assert [len(layer["sizes"]) for layer in done["layers"]] == [7, 7]
    again = f"convert model.pt {TINY} --recipe out/recipe.toml --calibrate rows.pt -o again --quiet"
    run([str(python), "-m", "moeify", *again.split()], tmp_path)
    assert (tmp_path / "out" / "moeify.safetensors").read_bytes() == (tmp_path / "again" / "moeify.safetensors").read_bytes()
    where = run([str(python), "-c", "import moeify_example_plugin as m, torch; print(m.__file__, torch.__file__)"], tmp_path)
    assert Path(where.split()[0]).is_relative_to(python.parent.parent)
    assert where.split()[1] == torch.__file__
