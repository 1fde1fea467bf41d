"""The C++ program of examples/cpp: built as its head says, it gives what a session in Python gives."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from converted import converted
from moeify.export.onnx.exporting import export_onnx
from moeify.runtime.decoder import Decoder
from moeify.runtime.native import library
from moeify.runtime.session import session
from small_decoder import small_decoder

ROOT = Path(__file__).parent.parent.parent
SOURCE = ROOT / "examples" / "cpp" / "next_token.cpp"
IDS = (3, 14, 15, 9, 2)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the line in the source's head, with warnings as errors."""
    (line,) = [text.removeprefix("//").split() for text in SOURCE.read_text("utf-8").splitlines() if "g++ " in text]
    path = tmp_path_factory.mktemp("program") / line[-1]
    try:
        done = subprocess.run(
            [*line[:-1], str(path), "-Wall", "-Wextra", "-Werror"], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.fail("no g++ here: the example cannot be built; install a C++ compiler")
    assert done.returncode == 0, done.stderr
    return path


def llama(path: Path) -> None:
    zoo, _ = converted("llama", top_k=1)
    export_onnx(zoo.model, zoo.example, path)


@pytest.fixture(scope="module", params=["small", pytest.param("llama", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder, and beside it the same without bodies of its MoE layers: none but the library can run that."""
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    (small_decoder if request.param == "small" else llama)(path)
    bare = ir.load(path)
    assert bare.functions
    bare.functions.clear()
    ir.save(bare, path.with_name("bare.onnx"))
    return path


def run(program: Path, native: str, model: Path, *ids: int) -> subprocess.CompletedProcess[str]:
    runtime = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*"))
    command = [str(program), str(runtime), native, str(model), *map(str, ids)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": ""})


@pytest.mark.parametrize("ids", [IDS, IDS[:1]], ids=["five tokens", "one"])
@pytest.mark.parametrize("native", [True, False])
def test_it_says_what_python_says(ids: tuple[int, ...], native: bool, program: Path, model: Path) -> None:
    done = run(program, str(library()) if native else "-", model, *ids)
    assert (done.returncode, done.stderr) == (0, "")
    logits = Decoder(session(model, native=native)).step(np.array([ids]))
    head, top = done.stdout.splitlines()
    assert head == f"logits 1 {len(ids)} {logits.shape[-1]}"
    _, token, value = top.replace(",", "").split()
    assert int(token) == logits[0, -1].argmax()
    assert float(value) == pytest.approx(float(logits[0, -1].max()), rel=1e-4)


def test_the_library_does_the_work(program: Path, model: Path) -> None:
    bare = model.with_name("bare.onnx")
    done = run(program, str(library()), bare, *IDS)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run(program, str(library()), model, *IDS).stdout
    alone = run(program, "-", bare, *IDS)
    assert alone.returncode == 1
    assert "moeify" in alone.stderr


def test_faults_are_one_line(program: Path, model: Path, tmp_path: Path) -> None:
    missing = run(program, str(library()), tmp_path / "no.onnx", *IDS)
    assert missing.returncode == 1
    assert missing.stderr.startswith("next_token: ")
    assert "no.onnx" in missing.stderr
    usage = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert (usage.returncode, usage.stderr.split(":")[0]) == (2, "usage")
