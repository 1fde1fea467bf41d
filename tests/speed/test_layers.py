"""Synthetic layers: their texts, their even load, their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from moe_reference import moe
from moeify.errors import UsageError
from moeify.runtime.session import session
from moeify.speed.layer_draws import EvenInputs, draw_weights, layers_beyond
from moeify.speed.layer_shape import LayerShape
from moeify.speed.layer_stack import converted, dense_gemm, dense_matmul, save_stack
from moeify.speed.layer_subject import stack_subject
from moeify.speed.measuring import sessions
from moeify.speed.settings import Settings
from moeify.speed.workload import Place

TEXT = "hidden=32,neurons=48,experts=8,top_k=2,activation=silu,gated=true"
SHAPE = LayerShape(32, 48, 8, 2, "silu", gated=True)
OTHERS = [LayerShape(32, 48, 4, 1), LayerShape(32, 48, 8, 3, "gelu", shared=16, rank=4, threshold=True)]


def test_a_shape_is_read_and_written() -> None:
    assert LayerShape.parse(TEXT) == SHAPE
    assert str(SHAPE) == TEXT
    for shape in OTHERS:
        assert LayerShape.parse(str(shape)) == shape


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hiden=32", "--shape: 'hiden' is nothing that a layer has: did you mean 'hidden'?"),
        ("hidden=32,neurons=48", "--shape 'hidden=32,neurons=48' lacks experts, top_k: write such as hidden=768"),
        (TEXT.replace("true", "si"), "--shape: gated is 'si': choose true or false"),
        (TEXT.replace("top_k=2", "top_k=two"), "--shape: top_k is 'two': give a whole number"),
        (TEXT.replace("top_k=2", "top_k=9"), "top_k is 9: choose from 1 to 8 (the number of experts)"),
        (TEXT.replace("experts=8", "experts=7"), "7 experts of one size cannot share 48 neurons"),
        (TEXT.replace("hidden=32", "hidden=4"), "experts is 8: choose no more than hidden (4)"),
        (TEXT.replace("silu", "sily"), "sily"),
    ],
)
def test_a_shape_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        LayerShape.parse(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("tokens", [4, 64, 511])
def test_experts_are_loaded_evenly_by_scores_that_pass_every_layer(tokens: int) -> None:
    x = EvenInputs(SHAPE).draw(tokens, np.random.default_rng(3))["x"]
    on = x[:, :8] > 0.5
    assert (on.sum(1) == 2).all()
    assert on.sum(0).max() - on.sum(0).min() <= 1
    assert not np.array_equal(x, EvenInputs(SHAPE).draw(tokens, np.random.default_rng(4))["x"])


def test_a_stack_is_more_than_four_caches() -> None:
    assert layers_beyond(10_000, SHAPE) * 4 * SHAPE.dense_weights > 4 * 10_000 >= (3 - 1) * 4 * SHAPE.dense_weights
    assert layers_beyond(1, SHAPE) == 2


@pytest.mark.parametrize("shape", [SHAPE, *OTHERS], ids=str)
@pytest.mark.parametrize("native", [True, False])
def test_files_compute_what_they_say(shape: LayerShape, native: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = [draw_weights(shape, rng) for _ in range(2)]
    x = EvenInputs(shape).draw(9, rng)["x"]
    y, dense = x.astype(np.float64), x.astype(np.float64)
    for w in layers:
        given: dict[str, Any] = {"up": w.up, "down": w.down, "offsets": np.array(shape.config.offsets)}
        given |= {"gate": w.gate} if shape.gated else {}
        low = {"low_rank_in": w.low_rank_in, "low_rank_out": w.low_rank_out} if shape.rank else {}
        rule: dict[str, Any] = {"gate_rule": shape.config.gate_rule, "normalize": shape.config.normalize}
        budget = {"threshold": np.float32(0.5)} if shape.threshold else {"k": np.int64(shape.top_k)}
        scores = y @ w.router.astype(np.float64)
        y = y + moe(**cast(Any, given | low | budget | rule), x=y, scores=scores, activation=shape.activation)
        all_on: dict[str, Any] = {"gate_rule": "one", "normalize": False, "activation": shape.activation}
        dense = dense + moe(**given, x=dense, scores=dense @ w.router.astype(np.float64), **all_on)
    found = session(save_stack(tmp_path / "m.onnx", converted, layers), native=native).run(None, {"x": x})[0]
    np.testing.assert_allclose(found, y, atol=2e-5)
    for build in (dense_matmul, dense_gemm):
        file = save_stack(tmp_path / f"{build.__name__}.onnx", build, layers)
        np.testing.assert_allclose(session(file, native=False).run(None, {"x": x})[0], dense, atol=2e-5)


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 1e-3), ("int8", 0.02), ("int4", 0.3)])
def test_all_forms_of_a_stack_have_its_precision(
    precision: str, bound: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moeify.speed.layer_subject.last_level_cache", lambda: 10_000)
    subject = stack_subject(SHAPE, tmp_path / "stack", Settings(tokens=(9,), precision=precision))
    assert subject.layers == {"fp16": 3, "int8": 9, "int4": 14}[precision], "bytes beyond four caches"
    rng, x = np.random.default_rng(0), EvenInputs(SHAPE).draw(9, np.random.default_rng(1))
    layers = [draw_weights(SHAPE, rng) for _ in range(subject.layers)]
    for name, built in sessions(subject, 1).items():
        exact = save_stack(tmp_path / f"{name}.onnx", converted if name == "converted" else dense_matmul, layers)
        wanted = session(exact, native=False).run(None, x)[0]
        assert 0 < np.abs(built.run(None, x)[0] - wanted).max() < bound * np.abs(wanted - x["x"]).max()


def test_work_is_that_of_all_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moeify.speed.layer_subject.last_level_cache", lambda: 10_000)
    subject = stack_subject(SHAPE, tmp_path / "stack", Settings(tokens=(1, 64)))
    assert subject.layers == 3
    assert set(sessions(subject, 1)) == {"dense MatMul", "dense Gemm", "converted"}
    one, many = (subject.work(place, "converted") for place in subject.places)
    assert subject.places == (Place(1), Place(64))
    assert one.weights == round(SHAPE.active * SHAPE.dense_weights) * 3
    assert one.flops == 2 * one.weights
    assert many.weights == (SHAPE.dense_weights + 8 * 32) * 3  # every expert is read
    assert many.flops == 64 * one.flops
    assert subject.work(Place(64), "dense Gemm").flops == 64 * 2 * SHAPE.dense_weights * 3
