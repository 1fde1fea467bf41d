"""`session` and `register`: the library where it is there, the function body where it is not or is not wanted."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import moeify
from moe_cases import Case, Variant, random_case
from moe_node import node_model, run_session
from moe_reference import moe
from moeify.errors import UsageError
from moeify.runtime import native
from moeify.runtime.session import session


def lying_file(path: Path) -> tuple[Path, Case]:
    """A file whose body gives zeros: the output tells who answered."""
    case = random_case(np.random.default_rng(0), Variant(k=2, output_bias=True))
    model = node_model(case)
    body = next(iter(model.functions.values()))
    output = body.outputs[0]
    zero = ir.node("Sub", [output, output])
    body.append(zero)
    body.outputs[0] = zero.outputs[0]
    ir.save(model, path / "m.onnx")
    return path / "m.onnx", case


def expected(case: Case) -> Any:
    return moe(**cast(dict[str, Any], case.inputs | case.attributes))


def test_the_library_answers_instead_of_the_body(tmp_path: Path) -> None:
    path, case = lying_file(tmp_path)
    np.testing.assert_allclose(run_session(session(path), case), expected(case), atol=1e-5)
    np.testing.assert_allclose(run_session(session(path, native=True), case), expected(case), atol=1e-5)
    assert not run_session(session(path, native=False), case).any()


def test_the_environment_says_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, case = lying_file(tmp_path)
    monkeypatch.setenv("MOEIFY_NATIVE", "0")
    assert not run_session(session(path), case).any()
    np.testing.assert_allclose(run_session(session(path, native=True), case), expected(case), atol=1e-5)


def test_one_line_for_options_of_ones_own(tmp_path: Path) -> None:
    path, case = lying_file(tmp_path)
    options = ort.SessionOptions()
    moeify.register(options)
    built = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(run_session(built, case), expected(case), atol=1e-5)


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, case = lying_file(tmp_path)
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    assert native.library() is None
    assert not run_session(session(path), case).any()
    for ask in (lambda: session(path, native=True), lambda: moeify.register(ort.SessionOptions())):
        with pytest.raises(UsageError) as caught:
            ask()
        assert str(caught.value) == (
            "the native operator library was not built: install a C++ compiler (g++ or clang++) and moeify again; "
            "without it exported files run by their function bodies"
        )


def test_a_library_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, case = lying_file(tmp_path)
    broken = tmp_path / "libmoeify.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    with pytest.raises(UsageError) as caught:
        session(path)
    assert str(caught.value).startswith(f"{broken}: ONNX Runtime cannot load it: ")
    assert str(caught.value).endswith("; install moeify again, or set MOEIFY_NATIVE=0")
    assert not run_session(session(path, native=False), case).any()


@pytest.mark.parametrize("ahead", ["first", "second"])
@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512"])
def test_instruction_sets_agree(isa: str, ahead: str, tmp_path: Path) -> None:
    """The environment asks for a lesser one, in a process of its own; sums differ in their last bits only."""
    path, case = lying_file(tmp_path)
    np.savez(tmp_path / "x.npz", x=case.inputs["x"], scores=case.inputs["scores"])
    script = (
        "import sys, numpy as np; from moeify.runtime.session import session; x = dict(np.load(sys.argv[2]));"
        "np.save(sys.argv[3], session(sys.argv[1]).run(None, x)[0])"
    )
    arguments = [sys.executable, "-c", script, str(path), str(tmp_path / "x.npz"), str(tmp_path / "y.npy")]
    subprocess.run(arguments, check=True, env={"MOEIFY_NATIVE_ISA": isa, "MOEIFY_NATIVE_AHEAD": ahead, "PATH": ""})
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected(case), atol=1e-5)


RESIDENT = """
import sys, numpy as np
from moeify.runtime.session import session
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
x, scores = np.ones((1, 1024), np.float32), np.array([[1, 0, 0, 0]], np.float32)
before = anonymous()
built = session(sys.argv[1], threads=1)
built.run(None, {"x": x, "scores": scores})
print(anonymous() - before)
"""


def test_weights_are_used_where_they_lie(tmp_path: Path) -> None:
    """Of 128 MB in external data nothing is copied into the process."""
    case = random_case(np.random.default_rng(0), Variant(lead=(1,), hidden=1024, output=1024, sizes=(4096,) * 4, k=1))
    model = node_model(replace(case, attributes=case.attributes | {"activation": "relu"}), body=False)
    ir.save(model, tmp_path / "m.onnx", external_data="m.data")
    assert (tmp_path / "m.data").stat().st_size >= 128 << 20
    run = subprocess.run([sys.executable, "-c", RESIDENT, str(tmp_path / "m.onnx")], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 24 << 10  # kB
