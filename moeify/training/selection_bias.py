"""Balance without a loss: the selection bias follows the load (DeepSeek-V3, DeepSeek-AI 2024, section 2.1.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from moeify.errors import UsageError
from moeify.layers.budget import moe_layers
from moeify.layers.training_state import TrainingState


def update_selection_bias(model: nn.Module) -> None:
    """After an optimizer's step: raises the selection bias of experts that had less than the mean load since the last update by
    `bias_rate`, and lowers that of those that had more.

    Loads are those of all processes, where torch.distributed is set up: then each of them has to call this. A layer that saw
    no token stays as it is. Raises UsageError where no layer has a bias_rate.
    """
    found = [(layer, s) for layer in moe_layers(model).values() if (s := layer.training_state) and s.rule.bias_rate]
    if not found:
        raise UsageError(
            f"{type(model).__name__}: no selection bias to update: call moeify.set_training(model, bias_rate=0.001)"
        )
    with torch.no_grad():
        for layer, state in found:
            assert layer.selection_bias is not None
            if layer.selection_bias.dtype != torch.float32:  # a cast of the whole model took it along; small steps need more
                layer.selection_bias = layer.selection_bias.float()
            bias = layer.selection_bias
            load = _load(state, bias)
            bias += state.rule.bias_rate * (load.mean() - load).sign().to(bias.dtype)


def update_after_steps(model: nn.Module, optimizer: Optimizer) -> Any:
    """Lets each step of the optimizer end with `update_selection_bias(model)`. Returns torch's handle, to `remove()` it."""
    return optimizer.register_step_post_hook(lambda *_: update_selection_bias(model))


def _load(state: TrainingState, bias: Tensor) -> Tensor:
    """float64 [experts]: the choices since the last update, of all processes, on the device of the bias."""
    assert state.tally is not None
    count = state.tally.take("selection bias")
    load = torch.zeros_like(bias, dtype=torch.float64) if count is None else count.chosen.to(bias.device)
    if distributed.is_available() and distributed.is_initialized():
        load = load.clone()
        distributed.all_reduce(load)
    return load
