from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moeify.ir.moe_config import RouterConfig
from moeify.ir.moe_spec import Compensation, MoESpec, Router
from moeify_passes.rewrite.same_spec import same_spec


def spec() -> MoESpec:
    """New tensors each time, the same values."""
    router = Router(RouterConfig("linear"), {"weight": torch.ones(2, 3)})
    return MoESpec((torch.arange(2), torch.arange(2, 4)), router=router, top_k=1, compensation=Compensation(torch.zeros(2, 3)))


@pytest.mark.parametrize(
    ("caption", "other", "same"),
    [
        ("equal values", spec(), True),
        ("no spec", None, False),
        ("another neuron", replace(spec(), experts=(torch.arange(2), torch.tensor([2, 5]))), False),
        ("fewer experts", replace(spec(), experts=(torch.arange(2),)), False),
        ("another router", replace(spec(), router=Router(RouterConfig("linear"), {"weight": torch.zeros(2, 3)})), False),
        (
            "another router kind",
            replace(spec(), router=Router(RouterConfig("average-key"), {"weight": torch.ones(2, 3)})),
            False,
        ),
        ("one more tensor", replace(spec(), weights={"up": torch.ones(4, 3)}), False),
        ("another dtype", replace(spec(), compensation=Compensation(torch.zeros(2, 3, dtype=torch.float64))), False),
        ("no compensation", replace(spec(), compensation=Compensation()), False),
        ("another top-k", replace(spec(), top_k=2), False),
    ],
)
def test_compares(caption: str, other: MoESpec | None, same: bool) -> None:
    assert same_spec(spec(), other) == same, caption
