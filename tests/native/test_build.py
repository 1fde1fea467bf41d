"""How the native library is built: by setup.py, without a compiler, under sanitizers, and for the oldest onnxruntime."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import pytest

from moe_cases import VARIANTS, random_case
from moe_node import node_model
from moe_reference import moe
from moeify.runtime.native import library

ROOT = Path(__file__).parent.parent.parent
STRICT = "-Wall -Wextra -Werror"

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("native-build")]


def build(into: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(into), "--build-temp", str(into / "objects")]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    run = build(tmp_path, MOEIFY_NATIVE_FLAGS=STRICT)
    assert run.returncode == 0, run.stderr
    built = tmp_path / "moeify" / "runtime" / "libmoeify.so"
    exported = subprocess.run(["nm", "-D", "--defined-only", str(built)], capture_output=True, text=True, check=True).stdout
    assert [line.split()[2] for line in exported.splitlines() if " T " in line] == ["RegisterCustomOps"]


def test_without_a_compiler_the_rest_is_installed(tmp_path: Path) -> None:
    run = build(tmp_path, CC="no-such-compiler", CXX="no-such-compiler")
    assert run.returncode == 0, run.stderr
    assert "installing without the native library: ONNX files run by their bodies" in run.stdout + run.stderr
    assert not list(tmp_path.rglob("libmoeify*"))


def test_a_library_that_is_open_is_not_written_into(tmp_path: Path) -> None:
    """A second build puts a new file in its place."""
    first, second = library(), tmp_path / "moeify" / "runtime" / "libmoeify.so"
    assert first is not None
    second.parent.mkdir(parents=True)
    shutil.copy(first, second)
    with second.open("rb") as held:
        assert build(tmp_path).returncode == 0
        assert os.fstat(held.fileno()).st_ino != second.stat().st_ino


def test_the_core_under_sanitizers(tmp_path: Path) -> None:
    """Random layers, extreme values and odd addresses, on every instruction set of this machine (driver.cpp)."""
    run = build(tmp_path, MOEIFY_NATIVE_FLAGS=f"{STRICT} -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all")
    assert run.returncode == 0, run.stderr
    objects = [str(path) for path in tmp_path.rglob("*.o") if path.stem not in ("operator", "register")]
    flags = [*STRICT.split(), "-std=c++17", "-g", "-DMOEIFY_X86", "-Inative", "-pthread", "-fsanitize=address,undefined"]
    driver = str(tmp_path / "driver")
    subprocess.run(["c++", *flags, "tests/native/driver.cpp", *objects, "-o", driver], cwd=ROOT, check=True)
    run = subprocess.run([driver, "500"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.startswith("500 cases on ")


OLDEST = """
import sys, numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.register_custom_ops_library(sys.argv[1])
y = ort.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"]).run(None, dict(np.load(sys.argv[3])))[0]
np.save(sys.argv[4], y)
print(ort.__version__)
"""


def test_the_oldest_onnxruntime_that_is_admitted(tmp_path: Path) -> None:
    """In an environment of its own; the model has no body."""
    case = random_case(np.random.default_rng(0), VARIANTS["everything"])
    ir.save(node_model(case, body=False), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=case.inputs["x"], scores=case.inputs["scores"])
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "onnxruntime==1.22.0", "numpy"], check=True)
    files = [str(library()), *(str(tmp_path / name) for name in ("m.onnx", "x.npz", "y.npy"))]
    run = subprocess.run([python, "-c", OLDEST, *files], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["1.22.0"]
    expected = moe(**cast(dict[str, Any], case.inputs | case.attributes))
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-5)
