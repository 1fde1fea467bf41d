"""Every lowering against the float64 reference, in stock ONNX Runtime and with the native library; what it leaves in a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from moe_cases import VARIANTS, Case, Variant, cases, random_case
from moe_node import node_model, node_session, run_session
from moe_reference import moe
from moeify.errors import ConversionError, InputError, UsageError
from moeify.export.onnx.attach import read_node
from moeify.export.onnx.body_contrib import CONTRIB
from moeify.export.onnx.forms import Form, Kind
from moeify.export.onnx.lowering.choices import check_lowering
from moeify.export.onnx.lowering.contrib import misfit
from moeify.export.onnx.lowering.lower import lower
from moeify.export.onnx.report import Lowered
from moeify.runtime.session import session


def case_of(variant: Variant, seed: int = 0) -> Case:
    return random_case(np.random.default_rng(seed), variant)


def lowered(case: Case, lowering: str, tokens: tuple[int, ...] = (1, 128)) -> tuple[ir.Model, Lowered]:
    """The case as a graph with an opaque node, lowered."""
    model = node_model(case, body=False)
    _, (report,) = lower(model, lowering, tokens)
    return model, report


def assert_equal(found: NDArray[Any], case: Case, caption: str = "") -> None:
    expected = moe(**cast(dict[str, Any], case.inputs | case.attributes))
    assert found.shape == expected.shape, caption
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6 * scale, err_msg=caption)


def fits(case: Case) -> bool:
    node = next(node for node in node_model(case, body=False).graph if node.op_type == "MoE")
    read = read_node(node)
    return misfit(read) is None or not read.shape.choosing


#: Activations are the business of bodies: test_onnx_body.py.
CAPTIONS = [caption for caption in VARIANTS if not caption.startswith("activation")]


@pytest.mark.parametrize("caption", CAPTIONS)
@pytest.mark.parametrize("lowering", ["portable", "standard", "auto", "contrib"])
def test_a_lowering_gives_what_the_reference_gives(lowering: str, caption: str) -> None:
    case = case_of(VARIANTS[caption])
    if lowering == "contrib" and not fits(case):
        with pytest.raises(ConversionError, match=r"com\.microsoft::MoE "):
            lowered(case, lowering)
        return
    model, _ = lowered(case, lowering)
    assert_equal(run_session(node_session(model), case), case)


@pytest.mark.parametrize("lowering", ["portable", "auto", "native"])
@pytest.mark.parametrize("caption", ["everything", "top-2, softmax, normalised", "threshold", "all on", "fine experts, gates"])
def test_a_lowering_with_the_native_library_gives_what_the_reference_gives(lowering: str, caption: str) -> None:
    case = case_of(VARIANTS[caption])
    model, _ = lowered(case, lowering)
    assert_equal(run_session(node_session(model, native=True), case), case)


def forms(variant: Variant) -> list[Form]:
    """Every form that fits the variant, with and without the knowledge that its experts are of one size."""
    size = variant.sizes[0] if len(set(variant.sizes)) == 1 else 0
    found = [Form(kind, size=known) for kind in cast(list[Kind], ["gathered", "masked"]) for known in {0, size}]
    found += [Form("unrolled"), Form("unrolled", "gathered", 1, size), Form("masked", "gathered", 8)]
    if variant.k is not None and fits(case_of(variant)):
        found += [Form("contrib", size=size), Form("masked", "contrib", 5, size)]
    return found


@pytest.mark.sampled
@pytest.mark.parametrize("caption", CAPTIONS)
def test_every_form_gives_what_the_reference_gives(caption: str) -> None:
    case = case_of(VARIANTS[caption])
    for form in forms(VARIANTS[caption]):
        assert_equal(run_session(node_session(node_model(case, form=form)), case), case, str(form))


@given(case=cases())
@settings(max_examples=8, deadline=None)
def test_every_form_gives_what_the_reference_gives_for_any_case(case: Case) -> None:
    for form in forms(case.variant):
        assert_equal(run_session(node_session(node_model(case, form=form)), case), case, str(form))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "form", [Form("gathered"), Form("gathered", size=3), Form("contrib", size=3), Form("unrolled")], ids=str
)
def test_idle_experts_are_not_computed(form: Form, threads: int) -> None:
    """Every token chooses experts 1 and 3; the weights of the others are NaN, which would spread over any sum."""
    case = case_of(Variant(lead=(9,), k=2, shared=2, activation="relu", up_bias=True))
    clean = replace(case, inputs=case.inputs | {"scores": np.tile(np.array([0, 1, 0, 1], dtype=np.float32), (9, 1))})
    poisoned = {name: clean.inputs[name].copy() for name in ("up", "down", "up_bias")}
    offsets = clean.inputs["offsets"]
    for array in poisoned.values():
        array[[row for e in (0, 2) for row in range(offsets[e], offsets[e + 1])]] = np.nan
    broken = replace(clean, inputs=clean.inputs | poisoned)
    found = run_session(node_session(node_model(broken, form=form), threads), broken)
    assert_equal(found, clean)


@pytest.mark.parametrize("lowering", ["standard", "contrib"])
def test_no_operator_of_our_own_is_left(lowering: str) -> None:
    model, report = lowered(case_of(Variant(k=2, activation="relu", shared=2, idle=True)), lowering)
    domains = {node.domain for node in ir.traversal.RecursiveGraphIterator(model.graph)}
    assert domains == {""} | ({CONTRIB} if lowering == "contrib" else set())
    assert set(model.graph.opset_imports) == domains
    assert not model.functions
    assert "offsets" in model.graph.initializers or lowering == "contrib"
    assert report.lowering == lowering


def test_a_native_file_has_no_body_and_says_what_it_needs(tmp_path: Path) -> None:
    model, report = lowered(case_of(Variant(k=2)), "native")
    assert not model.functions
    assert report == Lowered("node_MoE_2", "native", "", "4 experts of 3 neurons, top-2")
    ir.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError) as caught:
        session(tmp_path / "m.onnx", native=False)
    assert str(caught.value) == (
        f"{tmp_path / 'm.onnx'}: its MoE layers have no bodies, it needs the native library (docs/native.md): register it, or "
        "export with another lowering"
    )


@pytest.mark.parametrize("lowering", ["portable", "standard", "contrib", "auto"])
@pytest.mark.parametrize("tokens", [(1,), (1, 128)], ids=str)
def test_k_can_be_replaced(lowering: str, tokens: tuple[int, ...], tmp_path: Path) -> None:
    case = case_of(Variant(k=1, activation="relu", gate_rule="sigmoid", normalize=True, selection_bias=True))
    model, report = lowered(case, lowering, tokens)
    ir.save(model, tmp_path / "m.onnx")
    built = session(tmp_path / "m.onnx", threads=1, replace={f"{report.layer}.k": np.array(3)}, native=False)
    assert_equal(run_session(built, case), replace(case, inputs=case.inputs | {"k": np.array(3)}))


REFUSALS = {
    "unequal": (Variant(sizes=(2, 5, 3), k=1, activation="relu"), "takes experts of one size, not of 2 to 5 neurons"),
    "erf": (Variant(k=1, activation="gelu"), "knows relu, gelu-tanh, silu, identity, not gelu (its gelu is the tanh form)"),
    "activation": (Variant(k=1, activation="mish"), "knows relu, gelu-tanh, silu, identity, not mish"),
    "GeGLU": (Variant(k=1, activation="gelu-tanh", gated=True), "takes no gated FFN but of silu, not of gelu-tanh"),
    "wider": (Variant(k=1, output=7, activation="relu"), "gives as many values as it takes, not 7 for 6"),
}


@pytest.mark.parametrize("caption", REFUSALS)
def test_contrib_refuses_what_it_would_compute_otherwise(caption: str) -> None:
    variant, message = REFUSALS[caption]
    with pytest.raises(ConversionError) as caught:
        lowered(case_of(variant), "contrib")
    assert str(caught.value) == f"node_MoE_2: com.microsoft::MoE {message}; use the lowering auto, portable or standard"


CONTRIB_TABLE = {
    **{f"{name}": Variant(k=2, activation=name, up_bias=True) for name in ("relu", "gelu-tanh", "silu", "identity")},
    "swiglu": Variant(k=2, activation="silu", gated=True),
    "swiglu, one bias": Variant(k=2, activation="silu", gated=True, gate_bias=True),
    "swiglu, both biases": Variant(k=2, activation="silu", gated=True, gate_bias=True, up_bias=True, hidden=9, output=9),
    "ties": Variant(lead=(30,), sizes=(2,) * 6, k=2, activation="relu", ties=True),
    "threshold": Variant(lead=(30,), threshold=True, activation="relu", gate_rule="softmax"),
    "none on": Variant(lead=(6,), k=1, threshold=True, selection_bias=True, activation="relu", gate_rule="sigmoid"),
    "shared, compensated": Variant(k=1, activation="silu", gated=True, shared=3, idle=True, rank=2, output_bias=True),
    "k = E": Variant(k=4, activation="relu", gate_rule="sigmoid", normalize=True),
    "one expert": Variant(sizes=(5,), k=1, activation="relu", gate_rule="softmax"),
    "no token": Variant(lead=(0,), k=1, activation="relu"),
}


@pytest.mark.parametrize("caption", CONTRIB_TABLE)
def test_contrib_gives_what_the_reference_gives(caption: str) -> None:
    case = case_of(CONTRIB_TABLE[caption])
    model, _ = lowered(case, "contrib")
    assert sum(node.domain == CONTRIB for node in model.graph) == 1
    assert_equal(run_session(node_session(model), case), case)


def test_lowerings_are_checked_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError) as caught:
        check_lowering("fast")
    assert str(caught.value) == "lowering is 'fast': choose one of auto, portable, standard, contrib, native"
    with pytest.raises(UsageError, match="tokens is 1, 0: give numbers from 1, such as 1,128"):
        check_lowering("auto", (1, 0))
    with pytest.raises(UsageError, match="tokens is empty: give numbers from 1"):
        check_lowering("auto", ())
    monkeypatch.setattr("moeify.export.onnx.lowering.choices.library", lambda: None)
    with pytest.raises(UsageError, match="lowering is 'native', but the native operator library was not built"):
        check_lowering("native")
