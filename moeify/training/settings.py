"""How a converted model is trained, set on all of its MoE layers; and the sum of their losses."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from moeify.errors import UsageError
from moeify.layers.budget import matching_layers
from moeify.layers.model_hooks import watcher_of
from moeify.layers.moe_layer import MoELayer
from moeify.layers.training_door import TrainingDoor
from moeify.layers.training_notes import Tally
from moeify.layers.training_rule import Drop, RouterGradient, TrainingRule
from moeify.layers.training_state import TrainingState


def set_training(
    model: nn.Module,
    *,
    layers: str = "*",
    load_balance: float = 0.0,
    z_loss: float = 0.0,
    importance: float = 0.0,
    load: float = 0.0,
    sparsity: float = 0.0,
    sparsity_floor: float | None = None,
    bias_rate: float = 0.0,
    jitter: float = 0.0,
    router_noise: float = 0.0,
    gating_dropout: float = 0.0,
    capacity_factor: float | None = None,
    drop: Drop = "gate",
    router_gradient: RouterGradient | None = None,
    attach: bool | float = False,
) -> None:
    """Sets what the MoE layers whose path matches the glob do in training: what is not named is off, and in eval all of it.

    model: the one that the loop calls; its `attention_mask`, where it gets one, says which tokens are padding.

    load_balance, z_loss, importance, load, sparsity: weights of the losses (docs/training.md), added up by `auxiliary_loss`.
    Each is a mean over the tokens of one call of one layer. load needs router_noise; sparsity_floor: see HiddenSparsity.
    bias_rate: the step by which `update_selection_bias` moves each expert's selection bias, which all layers get.
    jitter: the router's input is multiplied with draws from 1 - jitter .. 1 + jitter.
    router_noise: the standard deviation of the noise on scores.
    gating_dropout: the probability that a token takes as many experts as it chose, but any.
    capacity_factor: an expert takes at most ceil(factor x choices / experts) tokens; None: all (dropless). drop: who does not
    get in: those with the lowest "gate", or the last by "position".
    router_gradient: None: that of the gates (docs/moe-layer.md); "straight-through" says so for gates of 1; "sparse-mixer".
    attach: False: the loop adds `auxiliary_loss(model)` to its own loss. True: backward adds their gradient by itself, and
    `auxiliary_loss` is for logs, without a gradient. A number is a factor on that gradient: 1 / n where a loop divides its
    loss by n accumulated batches.

    All layers change, or none. Raises UsageError for a model without MoE layers or without gradients (of an ONNX file), a glob
    that matches none, options out of range or at odds with one another, and a layer on which they cannot be (no router, a
    stochastic one, another gate rule).
    """
    rule = TrainingRule(
        load_balance, z_loss, importance, load, sparsity, sparsity_floor, bias_rate, jitter, router_noise, gating_dropout,
        capacity_factor, drop, router_gradient, attach,
    )  # fmt: skip
    model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped: its hooks are compiled with it
    check_trainable(model)
    chosen = matching_layers(model, layers)
    for path, layer in chosen.items():
        rule.check_layer(path or "the MoE layer", layer.config)
    for path, layer in chosen.items():
        if bias_rate:
            _add_selection_bias(layer)
        old = layer.training_state
        tally = old.tally if old is not None and old.tally is not None else Tally() if bias_rate else None
        idle = tally is None and rule == TrainingRule()
        enter(model, path, layer, None if idle else TrainingState(rule, tally))


def check_trainable(model: nn.Module) -> None:
    """Raises UsageError for a model that gradients cannot go through."""
    if (reason := getattr(model, "untrainable", None)) is not None:
        raise UsageError(f"{type(model).__name__} cannot be trained: {reason}")


def auxiliary_loss(model: nn.Module) -> Tensor:
    """The sum of the weighted losses of all MoE layers in the model's last forward: a scalar, float32, with a gradient.

    Reading changes nothing; the next forward begins anew. Raises UsageError for a model without MoE layers, where no loss is
    set, where no layer with one ran in training mode, and where the losses can have no gradient though one is being recorded
    now: the layers ran under no_grad, as reentrant checkpoints run them (there `set_training(..., attach=True)` works).
    """
    return torch.stack(list(auxiliary_losses(model).values())).sum()


def auxiliary_losses(model: nn.Module) -> dict[str, Tensor]:
    """`auxiliary_loss` by the names of the losses, each the sum over layers, weights on. Raises UsageError as it does."""
    states = [state for layer in matching_layers(model, "*").values() if (state := layer.training_state) and state.rule.losses]
    name = type(model).__name__
    if not states:
        raise UsageError(f"{name}: no auxiliary loss is set: call moeify.set_training(model, load_balance=0.01)")
    notes = [state.last for state in states if state.last is not None]
    if not notes:
        raise UsageError(
            f"{name}: no MoE layer with a loss ran in training mode: call train(), then the model that set_training was given"
        )
    if torch.is_grad_enabled() and not all(note.tracked for note in notes):
        raise UsageError(
            f"{name}: the layers ran without recording gradients (no_grad, or a reentrant checkpoint): their losses teach"
            " nothing; use set_training(..., attach=True)"
        )
    found: dict[str, Tensor] = {}
    for note in notes:
        for loss, value in note.losses.items():
            found[loss] = found[loss] + value.float() if loss in found else value.float()
    return found


def token_mask(model: nn.Module, *masks: Tensor) -> None:
    """Says which tokens of the coming forwards count, for models that are not called with `attention_mask`; none: all.

    masks: nonzero for tokens that count; a layer on x [..., hidden] takes the first of shape [...], or with as many tokens as
    x has rows, and raises UsageError if none fits. They hold until they are set anew. Raises UsageError for a model that
    set_training was not given.
    """
    doors = {id(state.door): state.door for layer in matching_layers(model, "*").values() if (state := layer.training_state)}
    if not doors:
        raise UsageError(f"{type(model).__name__}: a token mask is for models in training: call moeify.set_training first")
    for door in doors.values():
        door.given = masks


def enter(model: nn.Module, path: str, layer: MoELayer, state: TrainingState | None) -> None:
    """Gives the layer, which stands at that path of the model, its state, and the state its place at the model's door."""
    if (old := layer.training_state) is not None:
        old.door.states.remove(old)
    layer.training_state = state
    if state is not None:
        state.door = watcher_of(model, TrainingDoor)
        state.decodes = _decodes(model, path)
        state.door.states.append(state)


def _decodes(model: nn.Module, path: str) -> bool:
    """Is the layer one of the decoder in an encoder-decoder?"""
    parts = path.split(".")
    return "decoder" in parts and any("encoder" in name.split(".") for name, _ in model.named_modules())


def _add_selection_bias(layer: MoELayer) -> None:
    if layer.selection_bias is None:
        place = next(layer.parameters()).device
        layer.selection_bias = torch.zeros(layer.config.experts, dtype=torch.float32, device=place)
        layer.config = replace(layer.config, selection_bias=True)
