"""What is near a feed-forward network and must be left alone comes out with its reason."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from moeify.frontend.match import Found, match
from moeify.frontend.trace import trace
from traced_zoo import traced_zoo
from zoo_refusals import REFUSALS


def found_in(model: nn.Module, *example: Tensor) -> Found:
    return match(model, trace(model, example))


@pytest.mark.sampled
@pytest.mark.parametrize("caption", REFUSALS)
def test_refusal(caption: str) -> None:
    case = REFUSALS[caption]()
    found = found_in(case.model, *case.example)
    assert [(r.path, r.reason) for r in found.refusals] == case.refusals
    assert found.sites == ()


def test_attention_is_not_near() -> None:
    for name in ("nanogpt", "llama", "encoder-pre-gelu"):
        assert traced_zoo(name)[2].refusals == ()


def test_a_pooler_with_its_classifier_is_refused() -> None:
    refusals = traced_zoo("bert")[2].refusals
    assert [(r.path, r.reason) for r in refusals] == [("classifier", "its output has 2 values, its input 16")]


@pytest.mark.slow
def test_experts_of_a_mixture_are_refused_once_a_layer() -> None:
    for name in ("mixtral", "qwen2-moe"):
        refusals = traced_zoo(name)[2].refusals
        assert [(r.path, r.reason) for r in refusals] == [("model.layers.0.mlp", "it is a Mixture of Experts already")]
