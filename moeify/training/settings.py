"""How a converted model is trained, set on all of its MoE layers; and the sum of their losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moeify.errors import UsageError
from moeify.layers.budget import matching_layers
from moeify.layers.moe_layer import MoELayer
from moeify.layers.stochastic_router import StochasticRouter
from moeify.layers.training_door import TrainingDoor
from moeify.layers.training_rule import TrainingRule
from moeify.layers.training_state import TrainingState


def set_training(
    model: nn.Module, *, layers: str = "*", load_balance: float = 0.0, z_loss: float = 0.0, attach: bool | float = False
) -> None:
    """Sets what the MoE layers whose path matches the glob do in training: what is not named is off, and in eval all of it.

    model: the one that the loop calls; its `attention_mask`, where it gets one, says which tokens are padding.
    load_balance, z_loss: weights of the losses of `moeify.layers.router_losses`; 0.01 and 0.001 are usual. They are means over
    the tokens of a call, one for each layer and run of it; `auxiliary_loss` adds them up.
    attach: False: the loop adds `auxiliary_loss(model)` to its own loss. True: backward adds their gradient by itself, and
    `auxiliary_loss` is for logs, without a gradient. A number is a factor on that gradient: 1 / n where a loop divides its
    loss by n accumulated batches.

    All layers change, or none. Raises UsageError for a model without MoE layers, a glob that matches none, options out of
    range, and a loss on a layer whose router learns nothing (none at all, or a stochastic one).
    """
    rule = TrainingRule(load_balance=load_balance, z_loss=z_loss, attach=attach)
    chosen = matching_layers(model, layers)
    for path, layer in chosen.items():
        _check(path, layer, rule)
    door = TrainingDoor.of(model)
    for layer in chosen.values():
        layer.training_state = None if rule == TrainingRule() else TrainingState(rule, door)


def auxiliary_loss(model: nn.Module) -> Tensor:
    """The sum of the weighted losses of all MoE layers in the model's last forward: a scalar, float32, with a gradient.

    Reading changes nothing; the next forward begins anew. Raises UsageError for a model without MoE layers, where no loss is
    set, where no layer with one ran in training mode, and where the losses can have no gradient though one is being recorded
    now: the layers ran under no_grad, as reentrant checkpoints run them (there `set_training(..., attach=True)` works).
    """
    states = [state for layer in matching_layers(model, "*").values() if (state := layer.training_state) and state.rule.losses]
    if not states:
        raise UsageError(
            f"{type(model).__name__}: no auxiliary loss is set: call moeify.set_training(model, load_balance=0.01)"
        )
    records = [record for door in {id(s.door): s.door for s in states}.values() for record in door.records]
    if not records:
        raise UsageError(
            f"{type(model).__name__}: no MoE layer with a loss ran in training mode: call train() and then the model that"
            " set_training was given"
        )
    if torch.is_grad_enabled() and not all(record.tracked for record in records):
        raise UsageError(
            f"{type(model).__name__}: the layers ran without recording gradients (no_grad, or a reentrant checkpoint): their"
            " losses teach nothing; use set_training(..., attach=True)"
        )
    return torch.stack([loss.float() for record in records for loss in record.losses.values()]).sum()


def _check(path: str, layer: MoELayer, rule: TrainingRule) -> None:
    if rule.losses and (layer.router is None or isinstance(layer.router, StochasticRouter)):
        kind = "has no router" if layer.router is None else "draws its experts"
        raise UsageError(
            f"{path or 'the MoE layer'}: {next(iter(rule.losses))} needs a router that learns, and this layer {kind}"
        )
