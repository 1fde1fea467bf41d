"""The native kernel of `moeify::MoE` against the float64 reference, in models without a body: nothing else can answer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy import special

from moe_cases import VARIANTS, Case, Variant, cases, random_case
from moe_node import node_model, node_session, rounded, run_model, run_session
from moe_reference import ACTIVATIONS, Float, moe
from moeify.layers.routing import choose


def case_of(variant: Variant, seed: int = 0) -> Case:
    return random_case(np.random.default_rng(seed), variant)


def assert_equal_to_reference(case: Case, dtype: str = "float32", bound: float = 2e-6, threads: int = 1) -> None:
    expected = moe(**cast(dict[str, Any], case.inputs | case.attributes))
    found = run_model(node_model(case, dtype, body=False), case, threads, native=True)
    assert found.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound * scale)


@pytest.mark.parametrize("caption", VARIANTS)
def test_kernel_gives_what_the_reference_gives(caption: str) -> None:
    assert_equal_to_reference(case_of(VARIANTS[caption]))


@given(case=cases())
@settings(max_examples=100, deadline=None)
def test_kernel_gives_what_the_reference_gives_for_any_case(case: Case) -> None:
    assert_equal_to_reference(case, threads=2)


#: Caption -> layers wider than a register and a block, so that every tile and every rest of one is met.
WIDE = {
    "one token": Variant(lead=(1,), hidden=100, output=100, sizes=(40, 70, 9), shared=33, k=2, gated=True, up_bias=True),
    "few tokens, fine experts": Variant(lead=(3,), hidden=48, output=80, sizes=(8,) * 40, k=10, gate_rule="softmax"),
    "many tokens, fine experts": Variant(
        lead=(150,), hidden=130, output=200, sizes=(16,) * 24, shared=100, threshold=True, rank=5
    ),
    "many tokens": Variant(
        lead=(2, 170), hidden=257, output=129, sizes=(100, 65, 3), k=1, gated=True, idle=True, output_bias=True
    ),
    "two parts of hidden": Variant(lead=(9,), hidden=2050, output=64, sizes=(12, 12), k=1, up_bias=True),
    "six tokens, wide": Variant(lead=(6,), hidden=3090, output=80, sizes=(11, 6), shared=7, k=1, gated=True, gate_bias=True),
    "rows of x whole pages apart": Variant(lead=(150,), hidden=2048, output=64, sizes=(13, 12, 6), shared=9, k=1, rank=3),
    "more tokens than at once": Variant(lead=(1100,), hidden=8, output=8, sizes=(3, 5), k=1, idle=True),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("caption", WIDE)
def test_wide_layers(caption: str, threads: int) -> None:
    assert_equal_to_reference(case_of(WIDE[caption]), threads=threads)


@pytest.mark.parametrize("k", [1, 2, 7, 20, 63, 64])
def test_equal_scores_choose_the_lower_index(k: int) -> None:
    assert_equal_to_reference(case_of(Variant(lead=(40,), sizes=(1,) * 64, k=k, ties=True, idle=True)))


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 3e-3), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("caption", ["everything", "top-2, softmax, normalised", "threshold, sigmoid", "all on, softmax"])
def test_weights_of_16_bits(caption: str, dtype: str, bound: float) -> None:
    assert_equal_to_reference(rounded(case_of(VARIANTS[caption]), dtype), dtype, bound)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_are_rounded_once_at_the_end(dtype: str) -> None:
    """Everything in between is float32: the output is the reference's, rounded to the type, up to its last place."""
    case = rounded(case_of(WIDE["few tokens, fine experts"]), dtype)
    expected = moe(**cast(dict[str, Any], case.inputs | case.attributes))
    found = run_model(node_model(case, dtype, body=False), case, native=True)
    np.testing.assert_allclose(found, expected, rtol=2.0 ** (-10 if dtype == "float16" else -7), atol=1e-6)


#: The reference where its own formula loses the digits of the tail (1 + erf(x), 1 + tanh(x)), written without the sum.
TAILS: dict[str, Callable[[Float], Any]] = {
    "gelu": lambda x: x * special.ndtr(x),
    "gelu-tanh": lambda x: x * special.expit(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)),
}


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_keep_their_digits(name: str) -> None:
    """A layer that is the activation alone; relative error where all are normal numbers, tails included."""
    x = np.concatenate([np.linspace(-40, 40, 40001), np.geomspace(1e-30, 1e3, 2001), -np.geomspace(1e-30, 1e3, 2001)])
    x = x.astype(np.float32)[:, None]
    one = np.ones((1, 1), dtype=np.float32)
    inputs = {"x": x, "scores": np.zeros_like(x), "up": one, "down": one, "offsets": np.array([0, 1])}
    case = Case(Variant(lead=(len(x),)), inputs, {"activation": name, "gate_rule": "one", "normalize": False})
    expected = TAILS.get(name, ACTIVATIONS[name])(x.astype(np.float64))
    found = run_model(node_model(case, body=False), case, native=True)
    normal = np.abs(expected) > 2e-36  # of the exponential, which x multiplies
    np.testing.assert_allclose(found[normal], expected[normal], rtol=1e-6, atol=0)
    np.testing.assert_allclose(found[~normal], expected[~normal], rtol=0, atol=1e-42)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_broken_scores_choose_as_the_eager_layer_does(value: float, k: int) -> None:
    """Gates are 1 and each expert adds a number of its own: the output says who was chosen."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((50, 5)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.3] = value
    inputs = {
        "x": np.ones((50, 1), dtype=np.float32),
        "scores": scores,
        "up": np.ones((5, 1), dtype=np.float32),
        "down": 2.0 ** np.arange(5, dtype=np.float32)[:, None],
        "offsets": np.arange(6),
        "k": np.asarray(k),
        "threshold": np.asarray(-0.5, dtype=np.float32),
    }
    case = Case(Variant(lead=(50,)), inputs, {"activation": "identity", "gate_rule": "one", "normalize": False})
    chosen = choose(torch.from_numpy(scores), k, -0.5).numpy()
    found = run_model(node_model(case, body=False), case, native=True)
    np.testing.assert_array_equal(found[:, 0], chosen @ 2.0 ** np.arange(5))


def test_nan_in_one_token_stays_in_that_token() -> None:
    case = case_of(Variant(lead=(4,), k=2, output_bias=True))
    for name in ("x", "scores"):
        case.inputs[name][1] = np.nan
    found = run_model(node_model(case, body=False), case, native=True)
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2, 3]]).all()


def test_idle_experts_are_not_computed() -> None:
    """The weights of the two that no token chooses are NaN."""
    case = case_of(Variant(lead=(9,), sizes=(3, 2, 4, 5), k=2, shared=2, gated=True, up_bias=True, output_bias=True))
    case.inputs["scores"][:] = [0, 1, 0, 1]
    expected = moe(**cast(dict[str, Any], case.inputs | case.attributes))
    for name in ("up", "gate", "down", "up_bias"):
        case.inputs[name][2:5] = np.nan
        case.inputs[name][7:11] = np.nan
    np.testing.assert_allclose(run_model(node_model(case, body=False), case, native=True), expected, atol=1e-5)


@pytest.mark.parametrize("caption", [c for c in WIDE if c not in ("one token", "few tokens, fine experts")])
def test_a_token_does_not_depend_on_its_neighbours_or_on_threads(caption: str) -> None:
    """Bit for bit: a prompt at once, one by one, and on several threads."""
    case = case_of(WIDE[caption])
    case = replace(case, inputs={n: a.reshape(-1, a.shape[-1]) if n in ("x", "scores") else a for n, a in case.inputs.items()})
    case = replace(case, variant=replace(case.variant, lead=(len(case.inputs["x"]),)))
    model = node_model(case, body=False)
    together = run_session(node_session(model, native=True), case)
    alone = node_session(model, native=True)
    for t in range(0, len(together), 7):
        one = {name: case.inputs[name][t : t + 1] for name in ("x", "scores")}
        np.testing.assert_array_equal(alone.run(None, one)[0][0], together[t])
    several = node_session(model, threads=3, native=True)
    for _ in range(3):
        np.testing.assert_array_equal(run_session(several, case), together)


def test_one_session_serves_several_threads_at_once() -> None:
    small, large = case_of(WIDE["many tokens"], seed=1), case_of(WIDE["many tokens"], seed=1)
    for name in ("x", "scores"):
        small.inputs[name] = small.inputs[name][:, :5]
    session = node_session(node_model(large, body=False), threads=2, native=True)
    expected = {id(case): run_session(session, case) for case in (small, large)}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda case: (case, run_session(session, case)), [small, large] * 30))
    for case, y in found:
        np.testing.assert_array_equal(y, expected[id(case)])
