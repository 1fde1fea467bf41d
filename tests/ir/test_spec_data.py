"""A spec as data and tensors, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from moeify.ir.composed_spec import ComposedSpec
from moeify.ir.composition import Composition
from moeify.ir.moe_config import RouterConfig
from moeify.ir.moe_spec import Compensation, MoESpec, Router
from moeify.ir.spec_data import spec_data, spec_of

EXPERTS = (torch.tensor([4, 1]), torch.tensor([0, 2, 3]))

CASES: dict[str, MoESpec] = {
    "experts alone": MoESpec(EXPERTS),
    "a shared expert": MoESpec(EXPERTS[:1], shared=torch.tensor([0, 2, 3])),
    "a linear router": MoESpec(EXPERTS, router=Router(RouterConfig("linear"), {"weight": torch.randn(2, 4)}), top_k=1),
    "an MLP router": MoESpec(
        EXPERTS,
        router=Router(
            RouterConfig("mlp", width=3, activation="tanh", output="abs"),
            {"weight_in": torch.randn(3, 4), "weight_out": torch.randn(2, 3)},
        ),
        gate_rule="sigmoid",
        normalize=True,
        threshold=0.1 + 0.2,
        selection_bias=torch.randn(2),
    ),
    "compensation": MoESpec(
        EXPERTS, compensation=Compensation(torch.randn(2, 4), torch.randn(1, 4).bfloat16(), torch.randn(1, 4).bfloat16())
    ),
    "half a compensation": MoESpec(
        EXPERTS, compensation=Compensation(low_rank_in=torch.ones(1, 4), low_rank_out=torch.ones(1, 4))
    ),
    "copies": MoESpec(EXPERTS[:1] * 4, normalize=True, detach_sum=True, shards=2),
    "a stochastic router": MoESpec(
        EXPERTS, router=Router(RouterConfig("stochastic", scope="token", inference="fixed", seed=7), {}), top_k=1
    ),
    "a frozen core and residuals": MoESpec(EXPERTS, shards=1, composed=ComposedSpec(Composition("residual"))),
    "a frozen core and adapters": MoESpec(
        EXPERTS,
        composed=ComposedSpec(Composition("lora", 2, 3.0), {"down": torch.randn(3, 4)}, {"up_a": torch.randn(2, 2, 4)}),
    ),
    "new weights": MoESpec(EXPERTS, weights={"up": torch.randn(5, 4), "output_bias": torch.randn(4)}),
}


@pytest.mark.parametrize("caption", CASES)
def test_a_spec_comes_back_as_it_was(caption: str) -> None:
    values, tensors = spec_data(CASES[caption])
    assert plain(spec_of(json.loads(json.dumps(values)), tensors)) == plain(CASES[caption])


def test_every_field_of_a_spec_is_kept() -> None:
    """A field that is added to MoESpec has to be added to some case above, and so to its data."""
    default = plain(MoESpec(EXPERTS))
    for spec_field in fields(MoESpec):
        assert any(plain(spec)[spec_field.name] != default[spec_field.name] for spec in CASES.values()), spec_field.name


def plain(value: Any) -> Any:
    """The value with its tensors as lists."""
    if isinstance(value, Tensor):
        return (str(value.dtype), value.tolist())
    if isinstance(value, MoESpec | Router | Compensation | ComposedSpec):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple) else value
