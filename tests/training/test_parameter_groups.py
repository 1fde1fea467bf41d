"""Parameters by their part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from moeify.errors import UsageError
from moeify.training.parameter_groups import parameter_groups
from training.trained_models import Stack, moe_layer


def names(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, set[str]]:
    by_id = {id(p): name for name, p in model.named_parameters()}
    return {group["part"]: {by_id[id(p)] for p in group["params"]} for group in groups}


def test_every_trainable_parameter_is_in_one_group() -> None:
    model = Stack()
    model.first.down.requires_grad_(False)
    groups = parameter_groups(model, experts={"lr": 0.1}, router={"lr": 0.2, "weight_decay": 0.0})
    found = names(model, groups)
    assert found["router"] == {"first.router.weight", "second.router.weight"}
    assert found["rest"] == {"head.weight", "head.bias"}
    assert found["experts"] == {"first.up", "first.up_bias", "first.output_bias"} | {
        f"second.{name}" for name in ("up", "down", "up_bias", "output_bias")
    }
    optimizer = torch.optim.AdamW(groups, lr=0.3)
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.2, 0.3]
    assert [g["part"] for g in optimizer.param_groups] == ["experts", "router", "rest"]


def test_tied_ones_stand_once() -> None:
    layer = moe_layer()
    model = nn.ModuleList([layer, layer, nn.Linear(6, 6), nn.Linear(6, 6)])
    model[3].weight = model[2].weight
    groups = parameter_groups(model)
    every = [p for group in groups for p in group["params"]]
    assert len({id(p) for p in every}) == len(every) == len(list(model.parameters()))


def test_a_part_without_parameters_is_left_out() -> None:
    model = Stack()
    for layer in (model.first, model.second):
        layer.requires_grad_(False)
    assert [group["part"] for group in parameter_groups(model, experts={"lr": 1.0})] == ["rest"]
    with pytest.raises(UsageError, match="Stack: no parameter is trainable"):
        parameter_groups(model.requires_grad_(False))


@pytest.mark.parametrize("key", ["params", "part"])
def test_options_that_are_not_the_users(key: str) -> None:
    with pytest.raises(UsageError, match=f"the options of router hold '{key}'"):
        parameter_groups(Stack(), router={key: []})
