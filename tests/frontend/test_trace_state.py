"""The model is left as it was, whatever happens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

import pytest
import torch
from torch import nn

from moeify.errors import InputError
from moeify.export.onnx.calm import calm
from moeify.frontend.trace import trace
from moeify.frontend.trace_state import tracing_state
from zoo import ZOO, values
from zoo_computes import computes
from zoo_modules import HIDDEN


def _state(model: nn.Module) -> tuple[list[bool], list[Any], bool]:
    configs = [getattr(getattr(m, "config", None), "use_cache", None) for m in model.modules()]
    return [m.training for m in model.modules()], configs, torch.backends.mha.get_fastpath_enabled()


@pytest.mark.slow
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


class _Interrupted(Exception):
    """Stands for whatever ends a trace in the middle."""


@pytest.mark.parametrize("fails", [False, True], ids=["to the end", "an exception in the middle"])
@pytest.mark.parametrize("state", [tracing_state, calm], ids=["tracing", "exporting"])
@pytest.mark.parametrize(("name", "part"), [("t5", "decoder"), ("bart", "model.decoder"), ("whisper", "model.encoder")])
def test_each_config_gets_its_own_value_back(
    name: str, part: str, state: Callable[[nn.Module], AbstractContextManager[None]], fails: bool
) -> None:
    """Parts may share the model's config (BART) or hold a copy (T5); here one part has a copy with another value."""
    zoo = ZOO[name]()
    module: Any = zoo.model.get_submodule(part)
    module.config = copy.deepcopy(module.config)
    module.config.use_cache = False
    before = _state(zoo.model)
    assert {True, False} <= set(before[1])
    with suppress(_Interrupted), state(zoo.model):
        assert set(_state(zoo.model)[1]) <= {False, None}
        if fails:
            raise _Interrupted
    assert _state(zoo.model) == before


def test_use_cache_comes_back_where_the_forward_of_an_encoder_decoder_raises() -> None:
    zoo = ZOO["t5"]()
    before = _state(zoo.model)

    def fail(module: nn.Module, args: Any) -> None:
        raise ValueError("the decoder's feed-forward network is broken")

    handle = zoo.model.get_submodule("decoder.block.0.layer.2.DenseReluDense").register_forward_pre_hook(fail)
    with pytest.raises(InputError, match="does not run on its example inputs: the decoder's feed-forward network is broken"):
        trace(zoo.model, zoo.example)
    handle.remove()
    assert _state(zoo.model) == before


def test_the_model_is_left_as_it_was_after_an_error() -> None:
    model = computes(lambda h: h if h.sum().item() > 0 else -h).train()
    before = _state(model)
    with pytest.raises(InputError):
        trace(model, (values(2, 5, HIDDEN),))
    assert _state(model) == before
    assert not any(module._forward_hooks for module in model.modules())
