"""Setting the budget of a whole model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from layers.dense_sites import dense_site, split_spec
from moeify.errors import UsageError
from moeify.layers.budget import moe_layers, set_threshold, set_top_k
from moeify.layers.moe_layer import MoELayer


def model(router: bool = True) -> nn.Sequential:
    """Three MoE layers between linear ones: "1" and "3" of 4 experts, "4.0" of 6 (without a router, if so asked)."""
    site = dense_site()
    small, large = split_spec(site, experts=4, top_k=2), split_spec(site, experts=6)
    inner = nn.Sequential(MoELayer.from_spec(site, large if router else large.all_on()))
    first, second = MoELayer.from_spec(site, small), MoELayer.from_spec(site, small)
    return nn.Sequential(nn.Linear(6, 6), first, nn.Linear(6, 6), second, inner)


def test_layers_are_found_in_module_order() -> None:
    found = model()
    assert list(moe_layers(found)) == ["1", "3", "4.0"]
    assert list(moe_layers(nn.Sequential(found[1], found[1]))) == ["0"]
    assert moe_layers(found[1]) == {"": found[1]}


def test_top_k_of_all_layers_and_of_some() -> None:
    found = model()
    set_top_k(found, 3)
    assert [layer.top_k for layer in moe_layers(found).values()] == [3, 3, 3]
    set_top_k(found, 6, layers="4.*")
    assert [layer.top_k for layer in moe_layers(found).values()] == [3, 3, 6]
    set_top_k(found, None)
    assert [layer.top_k for layer in moe_layers(found).values()] == [None, None, None]


def test_threshold_of_all_layers_and_of_some() -> None:
    found = model()
    set_threshold(found, 0.5)
    assert [layer.threshold for layer in moe_layers(found).values()] == [0.5, 0.5, 0.5]
    set_threshold(found, {"3": 0.25, "4.0": 0.75})
    assert [layer.threshold for layer in moe_layers(found).values()] == [0.5, 0.25, 0.75]
    set_threshold(found, None)
    assert [layer.threshold for layer in moe_layers(found).values()] == [None, None, None]
    assert [layer.top_k for layer in moe_layers(found).values()] == [2, 2, None]


def test_the_budget_changes_what_runs() -> None:
    found = model()
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    before = found(x)
    set_top_k(found, 1)
    assert not torch.allclose(found(x), before)


ERRORS: dict[str, tuple[Callable[[nn.Sequential], None], bool, str]] = {
    "k above the experts": (lambda m: set_top_k(m, 5), True, "1: top_k is 5: choose from 1 to 4 (the number of experts)"),
    "k of zero": (lambda m: set_top_k(m, 0, "4*"), True, "4.0: top_k is 0: choose from 1 to 6 (the number of experts)"),
    "no such layers": (lambda m: set_top_k(m, 1, "4.00"), True, "no MoE layer matches '4.00': did you mean '4.0'?"),
    "k without router": (
        lambda m: set_top_k(m, 1),
        False,
        "4.0: top_k needs a router, and this layer has none: convert with a pass that inserts one",
    ),
    "threshold without router": (
        lambda m: set_threshold(m, 0.5),
        False,
        "4.0: threshold needs a router, and this layer has none: convert with a pass that inserts one",
    ),
    "threshold of an unknown layer": (
        lambda m: set_threshold(m, {"3": 0.1, "5": 0.5}),
        True,
        "the model has no MoE layer '5': known: 1, 3, 4.0",
    ),
    "threshold not a number": (
        lambda m: set_threshold(m, {"1": 0.1, "3": float("nan")}),
        True,
        "3: threshold is nan: choose a finite number",
    ),
    "no layers, top-k": (lambda m: set_top_k(m[0], 1), True, "Linear has no MoE layers: convert it first"),
    "no layers, threshold": (lambda m: set_threshold(m[0], None), True, "Linear has no MoE layers: convert it first"),
}


@pytest.mark.parametrize("caption", ERRORS)
def test_errors_change_nothing(caption: str) -> None:
    action, router, message = ERRORS[caption]
    found = model(router)
    before = [layer.config for layer in moe_layers(found).values()]
    with pytest.raises(UsageError) as info:
        action(found)
    assert str(info.value) == message
    assert [layer.config for layer in moe_layers(found).values()] == before
