"""A callback for the Trainer of transformers: logs the load of experts, and moves selection biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from moeify.errors import MissingExtraError, UsageError
from moeify.layers.budget import moe_layers
from moeify.training.expert_load import ExpertLoad, scalars
from moeify.training.selection_bias import update_selection_bias
from moeify.training.settings import auxiliary_losses

if TYPE_CHECKING:
    from transformers import TrainerCallback


def trainer_callback() -> TrainerCallback:
    """A new callback that adds the load of experts (`expert_load.scalars`) and the losses of the last forward to what the
    Trainer logs with its loss, and calls `update_selection_bias` after each optimizer step where a bias_rate is set.

    It adds to the entry of `state.log_history` and to what later callbacks see; reporters that stand before it in the Trainer's
    list do not: `trainer.callback_handler.callbacks.insert(0, trainer_callback())` puts it first. In several processes each
    counts its own tokens. Raises MissingExtraError without transformers; in training, UsageError for attached losses that the
    Trainer would weigh wrongly.
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise MissingExtraError("transformers", "train", "a callback of its Trainer") from error

    class MoECallback(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
        def __init__(self) -> None:
            self.load: ExpertLoad | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
            _check_attached(model, args)
            self.load = ExpertLoad(model)

        def on_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
            if any(layer.training_state.rule.bias_rate for layer in moe_layers(model).values() if layer.training_state):
                update_selection_bias(model)

        def on_log(self, args: Any, state: Any, control: Any, model: nn.Module, logs: Any = None, **_: Any) -> None:
            if self.load is None or not logs or "loss" not in logs:
                return
            found = scalars(self.load.read()) | _last_losses(model)
            logs.update(found)
            state.log_history[-1].update(found)

    return MoECallback()


def _check_attached(model: nn.Module, args: Any) -> None:
    """What the Trainer does to its loss before backward, it cannot do to losses that are attached."""
    factors = {layer.training_state.rule.attach for layer in moe_layers(model).values() if layer.training_state}
    batches = args.gradient_accumulation_steps
    if batches > 1 and True in factors:
        raise UsageError(f"attach is True and the Trainer accumulates {batches} batches: attach=1 / {batches}")
    if args.fp16 and any(factors):
        raise UsageError("attached losses are not scaled with the Trainer's loss, as fp16 needs it: train in bf16 or fp32")


def _last_losses(model: nn.Module) -> dict[str, float]:
    """The auxiliary losses of the last training forward; none where an evaluation came since, or none is set."""
    states = [layer.training_state for layer in moe_layers(model).values()]
    if not any(s.last and s.last.losses for s in states if s):
        return {}
    with torch.no_grad():
        return {f"moe/{name}": float(loss) for name, loss in auxiliary_losses(model).items()}
