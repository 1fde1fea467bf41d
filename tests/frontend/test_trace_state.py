"""The model is left as it was, whatever happens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from moeify.errors import InputError
from moeify.frontend.trace import trace
from moeify.frontend.trace_state import tracing_state
from zoo import ZOO, values
from zoo_computes import computes
from zoo_modules import HIDDEN


def _state(model: nn.Module) -> tuple[list[bool], list[Any], bool]:
    configs = [getattr(getattr(m, "config", None), "use_cache", None) for m in model.modules()]
    return [m.training for m in model.modules()], configs, torch.backends.mha.get_fastpath_enabled()


def test_the_model_is_left_as_it_was() -> None:
    zoo = ZOO["llama"]()
    zoo.model.train()
    zoo.model.get_submodule("model.layers.0.mlp").eval()
    before, weights = _state(zoo.model), {k: v.clone() for k, v in zoo.model.state_dict().items()}
    random = torch.random.get_rng_state()
    trace(zoo.model, zoo.example)
    assert _state(zoo.model) == before
    assert True in before[1]  # a cache was on
    assert torch.equal(random, torch.random.get_rng_state())
    for name, value in zoo.model.state_dict().items():
        assert torch.equal(value, weights[name])


def test_each_config_gets_its_own_value_back() -> None:
    zoo = ZOO["t5"]()
    zoo.model.get_submodule("decoder").config.use_cache = False  # type: ignore[union-attr]  # Hugging Face's own attribute
    before = _state(zoo.model)
    with tracing_state(zoo.model):
        assert set(_state(zoo.model)[1]) <= {False, None}
    assert _state(zoo.model) == before
    assert {True, False} <= set(before[1])


def test_the_model_is_left_as_it_was_after_an_error() -> None:
    model = computes(lambda h: h if h.sum().item() > 0 else -h).train()
    before = _state(model)
    with pytest.raises(InputError):
        trace(model, (values(2, 5, HIDDEN),))
    assert _state(model) == before
    assert not any(module._forward_hooks for module in model.modules())
