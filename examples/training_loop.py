"""The loop that all of the training examples run: nothing in it knows of experts, arms differ in the model and in the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

import moeify
from checkpointed_runs import Budget

Batch = dict[str, Tensor]

#: What backward starts from: a scalar, of a Hugging Face model and a batch with labels.
Loss = Callable[[Any, Batch], Tensor]


def plain_loss(model: Any, batch: Batch) -> Tensor:
    """The model's own loss."""
    loss: Tensor = model(**batch).loss
    return loss


def balanced_loss(model: Any, batch: Batch) -> Tensor:
    """And what moeify.set_training has asked of the routers."""
    return plain_loss(model, batch) + moeify.auxiliary_loss(model)


@dataclass(frozen=True)
class Schedule:
    """The learning rate rises to `rate` for a share of the steps, then falls to 0 in a line. beta: AdamW's second."""

    steps: int
    rate: float
    warmup: float = 0.1
    beta: float = 0.999


def train(
    model: nn.Module, batches: Iterable[Batch], schedule: Schedule, seed: int, budget: Budget, loss: Loss = plain_loss
) -> None:
    """AdamW over the batches, of which there are `schedule.steps`.

    seed: of dropout, and of experts that are drawn. Raises TimeIsUp.
    """
    betas, warmup = (0.9, schedule.beta), round(schedule.warmup * schedule.steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.rate, betas=betas, weight_decay=0.01)
    rates = get_linear_schedule_with_warmup(optimizer, warmup, schedule.steps)
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for batch in batches:
            budget.check()
            torch.autograd.backward(loss(model, batch))
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            rates.step()
    model.eval()
