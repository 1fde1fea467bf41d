"""What auto and portable choose, and why; on the rows of the benchmark that the cost model was made of."""

from __future__ import annotations

import pytest

from moeify.export.onnx.attach import MoENode
from moeify.export.onnx.body_shape import BodyShape
from moeify.export.onnx.forms import FINE, Form
from moeify.export.onnx.lowering import automatic, portable
from moeify.export.onnx.lowering.costs import COSTS, Work, features, milliseconds

BOTH = (1, 128)


def layer(experts: int, size: int, k: int | None, hidden: int = 768, activation: str = "relu", shared: int = 0) -> MoENode:
    offsets = tuple(shared + size * e for e in range(experts + 1))
    rule = "threshold" if k is None else "k"
    shape = BodyShape(experts, activation, bool(shared), present=frozenset({rule}))
    return MoENode("mlp", hidden, hidden, offsets, shape, k)


CHOICES = {
    "few wide experts": (layer(8, 384, 2), BOTH, Form("unrolled")),
    "few wide experts, one token": (layer(8, 384, 2), (1,), Form("unrolled")),
    "a shared expert changes nothing": (layer(8, 192, 2, shared=1536), BOTH, Form("unrolled")),
    "many experts": (layer(64, 48, 16, activation="gelu"), BOTH, Form("unrolled", "gathered", 2, 48)),
    "many experts, one token": (layer(64, 48, 16, activation="gelu"), (1,), Form("gathered", size=48)),
    "many experts, many tokens": (layer(64, 48, 16, activation="gelu"), (128,), Form("unrolled")),
    "very many experts": (layer(192, 16, 48, activation="gelu"), BOTH, Form("masked", "gathered", 2, 16)),
    "nearly all on, few tokens": (layer(64, 48, 60, activation="gelu"), (8,), Form("masked", size=48)),
}


@pytest.mark.parametrize("caption", CHOICES)
def test_the_form_fits_the_layer_and_the_tokens(caption: str) -> None:
    node, tokens, form = CHOICES[caption]
    assert portable.choose(node, tokens).form == form


def test_auto_takes_the_operator_of_onnx_runtime_where_it_fits_and_pays() -> None:
    assert automatic.choose(layer(192, 16, 48), BOTH).form == Form("contrib", size=16)
    assert automatic.choose(layer(192, 16, 48, activation="gelu"), BOTH).form == Form("masked", "gathered", 2, 16)
    assert automatic.choose(layer(8, 384, 2), BOTH).form == Form("unrolled")  # no faster there: the body stays portable


def test_a_choice_says_why() -> None:
    choice = automatic.choose(layer(8, 384, 2), BOTH)
    assert choice.shown == "unrolled"
    assert choice.reason == "8 experts of 384 neurons, top-2; expected speed / dense: 2.4 at 1 token, 2.9 at 128 tokens"
    few = portable.choose(layer(64, 48, None, activation="gelu"), BOTH)
    assert few.reason.startswith("64 experts of 48 neurons, a threshold, counted as half of them on; expected speed / dense: ")
    assert str(Form("unrolled", "gathered", 1)) == "gathered up to 1 token, unrolled beyond"
    dense = MoENode("mlp", 8, 8, (0, 4, 8), BodyShape(2, "relu"), None)
    assert (automatic.choose(dense, BOTH).shown, automatic.choose(dense, BOTH).reason) == (
        "dense",
        "all experts on: one dense FFN",
    )


@pytest.mark.parametrize("experts", [FINE, 1000])
def test_so_many_experts_are_never_unrolled(experts: int) -> None:
    for tokens in ((1,), (4,), (512,), BOTH):
        form = portable.choose(layer(experts, 4, experts // 4), tokens).form
        assert form is not None
        assert "unrolled" not in form.kinds


@pytest.mark.parametrize("kind", COSTS)
def test_costs_grow_with_the_work(kind: str) -> None:
    work = Work(768, 768, 16, 4.0, 3072, 2 * 768 * 3072)
    assert len(features(kind, work, 1)) == len(COSTS[kind])  # type: ignore[arg-type, index]
    times = [milliseconds(kind, work, tokens) for tokens in (1, 2, 16, 128, 512)]  # type: ignore[arg-type]
    assert times == sorted(times)
    assert times[0] < times[-1] / 4
