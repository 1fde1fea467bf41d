"""The native kernel of `moeify::QMoE` in models without a body, against the float64 reference."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from moe_cases import VARIANTS, Case, Variant, cases, random_case
from moe_node import node_model, node_session, run_model, run_session
from moe_reference import Float
from qmoe_reference import qmoe, qmoe_of_integers, quantised


def case_of(variant: Variant, bits: int = 8) -> Case:
    return quantised(random_case(np.random.default_rng(0), variant), bits)


def assert_equal(found: Float, expected: Float, bound: float) -> None:
    assert found.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound * scale)


def run(case: Case, threads: int = 1) -> Float:
    return run_model(node_model(case, body=False), case, threads, native=True)


@pytest.mark.parametrize("caption", VARIANTS)
def test_8_bits(caption: str) -> None:
    """Against what docs/moe-layer.md makes of x and h in 8 bits; a value that lies between two steps may fall on either."""
    case = case_of(VARIANTS[caption])
    assert_equal(run(case), qmoe_of_integers(case), 5e-3)
    assert_equal(run(case), qmoe(case), 5e-2)


@given(case=cases())
@settings(max_examples=60, deadline=None)
def test_8_bits_of_any_case(case: Case) -> None:
    case = quantised(case, 8)
    assert_equal(run(case, threads=2), qmoe_of_integers(case), 2e-2)


#: Caption -> layers wider than a register and a panel.
WIDE = {
    "one token": Variant(lead=(1,), hidden=128, output=160, sizes=(40, 70, 9), shared=33, k=2, gated=True, up_bias=True),
    "few tokens, fine experts": Variant(lead=(3,), hidden=64, output=96, sizes=(8,) * 40, k=10, gate_rule="softmax"),
    "many tokens, fine experts": Variant(
        lead=(60,), hidden=160, output=224, sizes=(16,) * 24, shared=100, threshold=True, rank=5
    ),
    "many tokens": Variant(
        lead=(2, 50), hidden=288, output=160, sizes=(100, 65, 3), k=1, gated=True, idle=True, output_bias=True
    ),
    "two parts of hidden": Variant(lead=(9,), hidden=2080, output=2112, sizes=(12, 13), k=1, up_bias=True),
    "rows of x whole pages apart": Variant(lead=(70,), hidden=1024, output=64, sizes=(13, 12, 6), shared=9, k=1, rank=3),
    "more tokens than at once": Variant(lead=(1100,), hidden=32, output=32, sizes=(3, 5), k=1, idle=True),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("caption", WIDE)
def test_wide_layers(caption: str, bits: int, threads: int) -> None:
    """In 4 bits x and h stay floats."""
    case = case_of(WIDE[caption], bits)
    assert_equal(run(case, threads), qmoe_of_integers(case) if bits == 8 else qmoe(case), 5e-3 if bits == 8 else 3e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_odd_widths_and_everything(bits: int) -> None:
    variant = replace(VARIANTS["everything"], hidden=160 if bits == 4 else 157, output=96 if bits == 4 else 101)
    case = case_of(variant, bits)
    assert_equal(run(case), qmoe_of_integers(case) if bits == 8 else qmoe(case), 5e-3 if bits == 8 else 3e-6)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("caption", ["many tokens, fine experts", "many tokens", "two parts of hidden"])
def test_a_token_does_not_depend_on_its_neighbours_or_on_threads(caption: str, bits: int) -> None:
    """Bit for bit: a prompt at once, one by one, and on several threads."""
    case = case_of(WIDE[caption], bits)
    case = replace(case, inputs={n: a.reshape(-1, a.shape[-1]) if n in ("x", "scores") else a for n, a in case.inputs.items()})
    case = replace(case, variant=replace(case.variant, lead=(len(case.inputs["x"]),)))
    model = node_model(case, body=False)
    together = run_session(node_session(model, native=True), case)
    np.testing.assert_array_equal(run_session(node_session(model, 2, native=True), case), together)
    alone = node_session(model, native=True)
    for t in range(0, len(together), 7):
        one = {name: case.inputs[name][t : t + 1] for name in ("x", "scores")}
        np.testing.assert_array_equal(alone.run(None, one)[0][0], together[t])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_token(value: float) -> None:
    case = case_of(Variant(lead=(6,), hidden=40, output=70, sizes=(9, 9), k=1))
    expected = run(case)
    case.inputs["x"][2, 5] = value
    found = run(case)
    assert not np.isfinite(found[2]).any()
    np.testing.assert_array_equal(np.delete(found, 2, axis=0), np.delete(expected, 2, axis=0))


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-37, 1e-30, 1e30])
def test_tiny_and_huge_values(size: float) -> None:
    case = case_of(Variant(lead=(3,), hidden=40, output=70, sizes=(9, 9), k=1, activation="identity"))
    case.inputs["x"][:] = (case.inputs["x"].astype(np.float64) * size).astype(np.float32)
    found, expected = run(case), qmoe(case)
    np.testing.assert_allclose(found, expected, rtol=0, atol=max(2e-2 * float(np.abs(expected).max()), 1e-35))


def test_idle_experts_are_not_computed() -> None:
    """The scales of the two that no token chooses are NaN."""
    for bits in (8, 4):
        case = case_of(Variant(lead=(9,), hidden=32, output=32, sizes=(3, 2, 4, 5), k=2, shared=2, gated=True), bits)
        case.inputs["scores"][:] = [0, 1, 0, 1]
        expected = run(case)
        for name in ("up", "gate", "down"):
            case.inputs[f"{name}_scale"][2:5] = np.nan
            case.inputs[f"{name}_scale"][7:11] = np.nan
        np.testing.assert_array_equal(run(case), expected)


SCRIPT = """
import sys, numpy as np, onnxruntime as ort
from moeify.runtime.session import session
np.save(sys.argv[3], session(sys.argv[1]).run(None, dict(np.load(sys.argv[2])))[0])
"""


def run_on(isa: str, case: Case, folder: Path) -> Float:
    ir.save(node_model(case, body=False), folder / "m.onnx")
    np.savez(folder / "x.npz", x=case.inputs["x"], scores=case.inputs["scores"])
    files = [str(folder / name) for name in ("m.onnx", "x.npz", f"{isa}.npy")]
    subprocess.run([sys.executable, "-c", SCRIPT, *files], check=True, env=os.environ | {"MOEIFY_NATIVE_ISA": isa})
    return np.asarray(np.load(files[-1]))


@pytest.mark.parametrize("tokens", [1, 40])
def test_instruction_sets_give_the_same_bit_for_bit(tokens: int, tmp_path: Path) -> None:
    """Sums are exact, and ReLU rounds nothing. Weights of 0 .. 255: all that a file may hold."""
    variant = Variant(lead=(tokens,), hidden=157, output=203, sizes=(33, 70, 9), shared=5, k=2, up_bias=True, activation="relu")
    case = case_of(variant)
    rng = np.random.default_rng(1)
    for name in ("up", "down"):
        case.inputs[name][:] = rng.choice(np.array([0, 255, 128, 1, 77], dtype=np.uint8), size=case.inputs[name].shape)
    plain = run_on("plain", case, tmp_path)
    assert np.abs(plain).max() > 0
    for isa in ("avx2", "avx512"):
        np.testing.assert_array_equal(run_on(isa, case, tmp_path), plain)
