"""A converted model learns to say what its dense parent says: distillation of outputs on text without labels.

Routing stays: routers are not trained, and a token goes on using as many weights as before. What is trained is what experts
say. For logits it is the distillation of Hinton et al. 2015 (section 2) at temperature 1.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moeify.errors import ConversionError, UsageError
from moeify.ir.model_graph import Batch
from moeify.layers.budget import moe_layers
from moeify.measure.outputs import evaluation_mode
from moeify.pipeline.context import Progress, no_progress
from moeify.training.align_data import Division, divide
from moeify.training.align_state import AlignState, StateFile
from moeify.training.alignment import Aligned, Alignment
from moeify.training.frozen_routing import frozen_routing, kept_budget
from moeify.training.master_weights import MasterWeights
from moeify.training.output_distance import mean_distance
from moeify.training.product_precision import Context, products
from moeify.training.settings import check_trainable
from moeify.training.teacher import Teacher

#: So often are the held-out rows looked at, and so many looks in a row that were no better end a run.
_LOOKS, _PATIENCE = 6, 3


def align(
    model: nn.Module,
    dense: nn.Module,
    batches: Iterable[Batch],
    how: Alignment | None = None,
    *,
    state: Path | None = None,
    progress: Progress = no_progress,
) -> Aligned:
    """Trains the experts of a converted model, in place, towards the outputs of the dense model on the batches.

    A tenth of their rows is held out; the weights that did best on it stay, and the run ends early when three looks at it in a
    row were no better. Both models stay in eval mode: no dropout. Thresholds move at the end so that a token uses as much as
    before. Memory: the batches, the dense model, and four times what is trained in float32 (gradient, two states of AdamW, the
    best so far), five times for a model in half precision, whose float32 weights are trained. state: a file where the run is
    kept from time to time; if it is there, the run goes on from it.

    Raises UsageError for a model without MoE layers or without gradients; InputError for batches without two rows, or that do
    not fit the models; ConversionError where the outputs of the two differ in shape, or training does not stay finite.
    """
    check_trainable(model)
    layers = moe_layers(model)
    if not layers:
        raise UsageError(f"{type(model).__name__} has no MoE layer to align: convert it first")
    how = how or Alignment()
    data = divide(batches, how.tokens)
    trained = [
        p
        for layer in layers.values()
        for name, p in layer.named_parameters()
        if p.requires_grad and not name.startswith("router.")
    ]
    precise = products(how.precision, trained[0])
    with (
        evaluation_mode(model, dense),
        kept_budget(model, layers.values(), data.train, precise),
        frozen_routing(layers.values()),
        _only_trained(model, trained),
    ):
        return _run(model, dense, data, trained, how, precise, None if state is None else StateFile(state), progress)


def _run(
    model: nn.Module, dense: nn.Module, data: Division, trained: list[nn.Parameter], how: Alignment, precise: Context,
    file: StateFile | None, progress: Progress,
) -> Aligned:  # fmt: skip
    started, weights = time.monotonic(), MasterWeights(trained)
    optimizer = torch.optim.AdamW(_groups(weights.masters), betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    found = None if file is None else file.take_up(weights.masters, optimizer)
    weights.give_back()
    if found is None:
        with precise():
            before, kind = mean_distance(dense, model, data.held_out)
        found = AlignState(before, before, kind), _copies(weights.masters)
    state, best = found
    teacher, order, started = Teacher(dense), data.order(how.seed), started - state.seconds
    rate = how.rate_from(state.before, state.kind)
    for _ in range(state.steps):
        next(order)
    while state.done < 1 and state.worse < _PATIENCE:
        with precise():
            number, batch = next(order)
            loss = teacher.answer(number, batch).distance(model, batch)
        _step(loss, weights, optimizer, how, rate * _schedule(state.done))
        looks = int(state.done * _LOOKS)
        state = _moved_on(state, how, time.monotonic() - started)
        progress("aligning", min(round(100 * state.done), 100), 100)
        if int(min(state.done, 1.0) * _LOOKS) > looks:
            with precise():
                state = state.judged(mean_distance(dense, model, data.held_out)[0])
            if state.best_step == state.steps:
                best = _copies(weights.masters)
            if file is not None:
                file.keep(state, weights.masters, best, optimizer)
    weights.set(best)
    rows, held = len(data.train), len(data.held_out)
    return Aligned(state.steps, state.best_step, state.before, state.best, state.kind, rows, held, time.monotonic() - started)


def _schedule(done: float) -> float:
    """The part of the learning rate that is used when so much of the run is done."""
    return min(1.0, 20 * done + 1e-3) * (1 + math.cos(math.pi * done)) / 2


def _step(loss: Tensor, weights: MasterWeights, optimizer: torch.optim.AdamW, how: Alignment, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["size"]
    if not bool(torch.isfinite(loss)):
        raise ConversionError("align: the distance from the dense model is not finite; choose a smaller learning rate")
    loss.backward()  # type: ignore[no-untyped-call]  # torch
    weights.take_gradients()
    nn.utils.clip_grad_norm_(weights.masters, how.clip)
    optimizer.step()
    weights.give_back()
    optimizer.zero_grad(set_to_none=True)


def _groups(trained: list[nn.Parameter]) -> list[dict[str, Any]]:
    """One for each tensor, with its size: the root mean square of its values, at least a tenth of the median one.

    AdamW moves a value by about the learning rate whatever the gradient, and models differ in the size of their weights.
    """
    sizes = [float(p.detach().float().square().mean().sqrt()) for p in trained]
    least = 0.1 * statistics.median(sizes) or 1.0
    return [{"params": [p], "size": max(size, least)} for p, size in zip(trained, sizes)]


def _moved_on(state: AlignState, how: Alignment, seconds: float) -> AlignState:
    steps = state.steps + 1
    by_time = 0.0 if how.minutes is None else seconds / (60 * how.minutes)
    by_steps = 0.0 if how.steps is None else steps / how.steps
    return replace(state, steps=steps, seconds=seconds, done=max(by_time, by_steps))


def _copies(trained: list[nn.Parameter]) -> list[Tensor]:
    return [p.detach().clone() for p in trained]


@contextmanager
def _only_trained(model: nn.Module, trained: list[nn.Parameter]) -> Iterator[None]:
    """Nothing else of the model gets a gradient; what trains otherwise is put back at the end."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    wanted = set(trained)
    try:
        for p, _ in flags:
            p.requires_grad_(p in wanted)
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
            p.grad = None
