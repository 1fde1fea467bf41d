"""Module-to-module distillation (m2mKD, Lo et al. 2024): an MoE layer stands in for its FFN in the dense model.

The dense model is the meta model: all of it is frozen but the one layer. With its own FFN in that place it is the teacher, with
the layer the student; both see the same data, and the layer learns from the task and from the teacher's outputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeify.data.calls import batches_digest
from moeify.errors import InputError, UsageError
from moeify.frontend.load_model import load_model
from moeify.ir.model_graph import Batch
from moeify.layers.moe_layer import MoELayer
from moeify.measure.outputs import evaluation_mode, main_output, run, visible_outputs
from moeify.measure.substitute import computed_by
from moeify.pipeline.context import Progress, no_progress
from moeify.training.block_training import BlockReport, MakeOptimizer, Schedule, adamw, held_out_count, shuffled
from moeify.training.blocks import Block, blocks_of, digest_of, in_order, train_all
from moeify.training.finished_blocks import FinishedBlocks

#: The task's loss, a scalar, of the model's output and its batch.
Task = Callable[[Any, Batch], Tensor]


def distill_modules(
    model: nn.Module,
    dense: nn.Module | str | Path,
    batches: Iterable[Batch],
    *,
    task: Task | None = None,
    alpha: float = 0.5,
    temperature: float = 1.0,
    per: Literal["logit", "token"] = "logit",
    steps: int = 200,
    optimizer: MakeOptimizer = adamw,
    order: Literal["forward", "backward"] | Sequence[str] = "forward",
    held_out: float = 0.1,
    checks: int = 10,
    patience: int = 2,
    layers: str = "*",
    seed: int = 0,
    folder: str | Path | None = None,
    progress: Progress = no_progress,
) -> tuple[BlockReport, ...]:
    """Trains each MoE layer of the converted model in the dense model's place for it, by (1 - alpha) task + alpha KL, and
    returns the loss on held-out batches before and after, in the order of training.

    dense: the model before conversion. What is no FFN is taken from the converted model, where it is the same as long as that
    was not trained. batches: one a step; the last `held_out` of them, at least one, are not trained on. What the model's
    `forward` does not take of one (by name, or by place behind its arguments) is for the task alone.
    task: its loss; None: the `loss` that the model gives for batches with labels. alpha 1 needs no task.
    temperature, per: see `teacher_loss`. The other options are those of `distill_layers`; folder does not compare the task.

    Raises UsageError for options out of range and a model without a loss, InputError for data or a dense model that do not fit,
    ConversionError for a loss that is not finite.
    """
    schedule = Schedule(steps, checks, patience, optimizer)
    if not 0 <= alpha <= 1 or not temperature > 0 or per not in ("logit", "token"):
        raise UsageError(
            f"alpha is {alpha}, temperature {temperature}, per {per!r}: choose 0 to 1, above 0, and logit or token"
        )
    data = list(batches)
    count = held_out_count(len(data), held_out)
    if len(data) <= count:
        raise InputError(f"the data holds {len(data)} batches: give two or more, of which {count} is held out")
    if not isinstance(dense, nn.Module):
        dense = load_model(dense, example=_taken(model, data[0]), dtype=next(model.parameters()).dtype).model
    with evaluation_mode(model):
        blocks = blocks_of(model, dense)
        losses = _Losses(model, blocks, task, alpha, temperature, per)

        def train(block: Block) -> BlockReport:
            draw = shuffled(len(data) - count, 1, f"{seed}/batches/{block.path}")

            @torch.no_grad()
            def measured() -> float:
                return sum(float(losses.of(block, batch)) for batch in data[-count:]) / count

            with _frozen_but(model, block.layer):
                return schedule.train(
                    block.path, block.layer, lambda step: losses.of(block, data[int(draw(step))]), measured, seed
                )

        def about() -> dict[str, Any]:
            settings = ["modules", alpha, temperature, per, seed, steps, held_out, checks, patience]
            return {"weights": digest_of(blocks), "data": batches_digest(data), "settings": settings}

        finished = FinishedBlocks(folder, about, chained=False)
        return train_all(in_order(blocks, order, layers), train, finished, progress)


def teacher_loss(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, per: Literal["logit", "token"] = "logit"
) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of logits [..., classes], in nats: the sum over everything, divided
    by the number of logits (the authors' code) or of tokens. A scalar.
    """
    log_q, log_p = (logits.float().div(temperature).log_softmax(-1) for logits in (student, teacher))
    total = F.kl_div(log_q, log_p, reduction="sum", log_target=True) * temperature**2
    return total / max(1, log_q.numel() if per == "logit" else log_q.shape[:-1].numel())


class _Losses:
    """What one block has to make small on a batch."""

    def __init__(
        self,
        model: nn.Module,
        blocks: Mapping[str, Block],
        task: Task | None,
        alpha: float,
        temperature: float,
        per: Literal["logit", "token"],
    ) -> None:
        self._model, self._task = model, task or _own_loss
        self._layers: dict[str, MoELayer] = {path: block.layer for path, block in blocks.items()}
        self._dense = {path: block.dense for path, block in blocks.items()}
        self._alpha, self._temperature, self._per = alpha, temperature, per

    def of(self, block: Block, batch: Batch) -> Tensor:
        others = {path: compute for path, compute in self._dense.items() if path != block.path}
        inputs = _taken(self._model, batch)
        with computed_by(self._layers, others):
            output = run(self._model, inputs)
        loss = self._task(output, batch) * (1 - self._alpha) if self._alpha < 1 else torch.zeros(())
        if not self._alpha:
            return loss
        with torch.no_grad(), computed_by(self._layers, self._dense):
            teacher = main_output(run(self._model, inputs))[1]
        student, shown = main_output(output)[1], visible_outputs(batch)
        if shown is not None and shown.shape == student.shape[:-1]:
            student, teacher = student[shown.to(student.device)], teacher[shown.to(student.device)]
        return loss + self._alpha * teacher_loss(student, teacher, self._temperature, self._per)


def _taken(model: nn.Module, batch: Batch) -> Batch:
    """What the model's forward takes of the batch."""
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = {parameter.kind for parameter in parameters}
    if isinstance(batch, dict):
        names = {parameter.name for parameter in parameters}
        return batch if inspect.Parameter.VAR_KEYWORD in kinds else {n: v for n, v in batch.items() if n in names}
    return batch if inspect.Parameter.VAR_POSITIONAL in kinds else batch[: len(parameters)]


def _own_loss(output: Any, batch: Batch) -> Tensor:
    found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(found, Tensor):
        raise UsageError("the model gives no loss for the batches: put labels into them, give task=..., or set alpha to 1")
    return found


@contextmanager
def _frozen_but(model: nn.Module, layer: MoELayer) -> Iterator[None]:
    """Within, parameters outside of the layer want no gradient, so that nothing is kept for one."""
    own = {id(parameter) for parameter in layer.parameters()}
    frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
