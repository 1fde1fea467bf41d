"""What would be published: built by the commands of docs/releasing.md, looked into, and installed in a new environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest

import moeify

ROOT = Path(__file__).parent.parent.parent

#: What a checkout has and a build does not start from.
_LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.so", "*.dylib")

#: Beside all of moeify/, passes/, native/ and docs/.
_TOP = {
    "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "README.md", "constraints.txt", "pyproject.toml", "setup.py",
}  # fmt: skip

linux = pytest.mark.skipif(sys.platform != "linux", reason="auditwheel is of Linux")
native = pytest.mark.xdist_group("native-build")


def test_the_version_stands_in_one_place_and_in_the_changelog() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "moeify.__version__"}
    sections = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert sections[:2] == ["Unreleased", moeify.__version__]


def commands() -> str:
    page = (ROOT / "docs" / "releasing.md").read_text("utf-8")
    return page.partition("<!-- release -->")[2].partition("```sh\n")[2].partition("```")[0]


def run(command: str, folder: Path, **environment: str) -> str:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=os.environ | {"PATH": path} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release") / "moeify"
    shutil.copytree(ROOT, folder, ignore=_LEFT_OUT)
    return folder


@pytest.fixture(scope="module")
def built(checkout: Path) -> Iterator[tuple[Path, Path]]:
    """The source distribution, and the wheel that would be published."""
    said = run(commands(), checkout)
    assert said.count("PASSED") == 2, said
    yield next((checkout / "dist").glob("*.tar.gz")), next((checkout / "dist" / "wheelhouse").glob("*.whl"))
    shutil.rmtree(checkout.parent)


def sources(archive: Path) -> dict[str, bytes]:
    """Name below the top folder -> content, of all that setuptools did not make itself."""
    with tarfile.open(archive) as tar:
        files = {m.name.partition("/")[2]: tar.extractfile(m) for m in tar.getmembers() if m.isfile()}
        found = {name: file.read() for name, file in files.items() if file is not None}
    made = ("PKG-INFO", "setup.cfg")
    return {name: content for name, content in found.items() if name not in made and ".egg-info/" not in name}


@linux
@native
@pytest.mark.slow
def test_the_source_distribution_holds_the_sources_and_no_more(built: tuple[Path, Path], checkout: Path) -> None:
    kinds_of = {
        "moeify": (".py", ".typed", ".toml", ".html", ".css"),
        "passes": (".py", ".typed"),
        "native": (".h", ".cpp"),
        "docs": (".md",),
    }
    of_folders = {
        path.relative_to(ROOT).as_posix()
        for folder, kinds in kinds_of.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in kinds or path.name == "py.typed"
    }
    found = sources(built[0])
    assert found.keys() == of_folders | _TOP
    assert all((ROOT / name).read_bytes() == content for name, content in found.items())
    run("python -m build --sdist --no-isolation --outdir again", checkout)
    assert sources(next((checkout / "again").glob("*.tar.gz"))) == found


@linux
@native
@pytest.mark.slow
def test_the_wheel_serves_every_python_and_holds_the_library(built: tuple[Path, Path]) -> None:
    assert re.fullmatch(rf"moeify-{re.escape(moeify.__version__)}-py3-none-manylinux_2_\d+_x86_64\.whl", built[1].name)
    with zipfile.ZipFile(built[1]) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
        about = Parser().parsestr(wheel.read(f"moeify-{moeify.__version__}.dist-info/METADATA").decode())
        tags = wheel.read(f"moeify-{moeify.__version__}.dist-info/WHEEL").decode()
    info = f"moeify-{moeify.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"moeify", "moeify_passes", info}
    assert {"moeify/py.typed", "moeify_passes/py.typed", "moeify/runtime/libmoeify.so", f"{info}/licenses/LICENSE"} <= names
    assert {path.name for path in (ROOT / "moeify" / "recipes").glob("*.toml")} == {
        name.rpartition("/")[2] for name in names if name.startswith("moeify/recipes/") and name.endswith(".toml")
    }
    assert "Root-Is-Purelib: false" in tags
    assert (about["Version"], about["License-Expression"]) == (moeify.__version__, "Apache-2.0")
    assert about["Description-Content-Type"] == "text/markdown"
    assert {"Typing :: Typed", "Programming Language :: Python :: 3.11"} <= set(about.get_all("Classifier", []))
    assert about.get_payload() == (ROOT / "README.md").read_text("utf-8")


@native
@pytest.mark.slow
def test_without_a_compiler_the_wheel_is_one_for_every_platform(checkout: Path, tmp_path: Path) -> None:
    shutil.copytree(checkout, tmp_path / "moeify", ignore=_LEFT_OUT)
    run("python -m build --wheel --no-isolation --outdir dist", tmp_path / "moeify", CC="no-such", CXX="no-such")
    (wheel,) = (tmp_path / "moeify" / "dist").iterdir()
    assert wheel.name == f"moeify-{moeify.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as file:
        assert not [name for name in file.namelist() if "libmoeify" in name]
        assert "Root-Is-Purelib: true" in file.read(f"moeify-{moeify.__version__}.dist-info/WHEEL").decode()


CHECK = """
import sys, importlib.metadata, importlib.resources
import numpy as np, torch
from torch import nn
import moeify
from moeify.runtime.native import library
from moeify.runtime.session import session
assert moeify.__file__.startswith(sys.prefix), moeify.__file__
assert importlib.metadata.version("moeify") == moeify.__version__
assert importlib.resources.files("moeify").joinpath("py.typed").is_file()
assert library() is not None
model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
x = torch.linspace(-2, 2, 32).view(2, 16)
done = moeify.convert(model, "out", example=(x,), experts=4, top_k=2, export=("torch", "onnx"), force=True)
built = session("out/model.onnx", native=True)
found = built.run(None, {built.get_inputs()[0].name: x.numpy()})[0]
with torch.no_grad():
    np.testing.assert_allclose(found, done.model(x).numpy(), atol=1e-5)
print("it works:", len(done.report.layers))
"""


@linux
@native
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_is_installed_and_works(built: tuple[Path, Path], tmp_path: Path) -> None:
    """From the source distribution with what it depends on, then from the wheel in its place."""
    (tmp_path / "check.py").write_text(CHECK, "utf-8")
    run("python -m venv venv", tmp_path)
    for line in (f"-c {ROOT / 'constraints.txt'} 'moeify[onnx] @ {built[0].as_uri()}'", f"--no-deps {built[1]}"):
        run("venv/bin/pip uninstall -q -y moeify", tmp_path)
        run(f"venv/bin/pip install -q {line}", tmp_path)
        assert run("venv/bin/moeify --version", tmp_path) == f"moeify {moeify.__version__}\n"
        assert run("venv/bin/python check.py", tmp_path, OMP_NUM_THREADS="1").splitlines()[-1] == "it works: 1"
        run("venv/bin/pip check", tmp_path)
