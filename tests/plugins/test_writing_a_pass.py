"""docs/writing-a-pass.md does what it says: its files are written out, and used."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.command_line import Outcome
from cli.tiny_models import TINY
from installed import install

Run = Callable[[str], Outcome]

PAGE = Path(__file__).parent.parent.parent / "docs" / "writing-a-pass.md"


@pytest.fixture(autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package of the page, as if installed; its recipe in the current folder."""
    home = tmp_path_factory.mktemp("installed")
    for name, text in re.findall(r"^```\w+\n# (\S+)\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        path = (tmp_path if name == "idle.toml" else home) / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
    project = tomllib.loads((home / "pyproject.toml").read_text("utf-8"))["project"]
    install(home, monkeypatch, project["name"], project["entry-points"], project["version"])
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


def test_the_recipe_of_the_page_runs(moeify: Run, tmp_path: Path) -> None:
    done = moeify(f"convert model.pt {TINY} -o out --recipe idle.toml --calibrate rows.pt --json")
    assert (done.code, done.err) == (0, "")
    assert all(0 <= layer["measured"]["idle_neurons"] < 1 for layer in done.data["layers"])
    recipe = tomllib.loads((tmp_path / "out" / "recipe.toml").read_text("utf-8"))
    assert recipe["plugins"] == {"cluster-neurons.by.in-order": "my-package 1.0", "report-idle-neurons": "my-package 1.0"}


def test_the_setting_of_the_page_is_taken(moeify: Run) -> None:
    done = moeify(f"convert model.pt {TINY} -o out --experts 4 --set cluster-neurons.by=in-order")
    assert (done.code, done.out.count("\n")) == (0, 4)


def test_the_listing_names_the_package(moeify: Run) -> None:
    rows = [line.split()[:3] for line in moeify("passes").out.splitlines()]
    assert ["report-idle-neurons", "analysis", "my-package"] in rows
    assert ["in-order", "cluster-neurons.by", "my-package"] in rows
    assert "From my-package 1.0." in moeify("passes cluster-neurons").out


def test_what_the_page_refuses_is_refused(moeify: Run) -> None:
    done = moeify(f"convert model.pt {TINY} -o out --recipe idle.toml --calibrate rows.pt --set report-idle-neurons.below=2")
    assert (done.code, done.err) == (
        2, "moeify: error: report-idle-neurons.below is 2.0: choose a number between 0 and 1\n",
    )  # fmt: skip
    done = moeify(f"convert model.pt {TINY} -o out --recipe idle.toml")
    assert done.code == 2
    assert "report-idle-neurons, as it is set, needs calibration data: pass --calibrate FILE" in done.err
