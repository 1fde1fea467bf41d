"""Each MoE layer learns from the dense FFN that it was made of, by itself: no gradient crosses a block.

The inputs of one block after the other are taken from a walk over the traced dense model, whose segments run once each; only
those of one block are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from moeify.data.calls import batches_digest
from moeify.errors import InputError, UsageError
from moeify.ir.model_graph import Batch
from moeify.measure.outputs import evaluation_mode
from moeify.pipeline.context import Progress, no_progress
from moeify.pipeline.size import parse_size
from moeify.training.block_inputs import BlockInputs
from moeify.training.block_training import BlockReport, MakeOptimizer, Schedule, adamw, held_out_count, shuffled
from moeify.training.blocks import Block, blocks_of, digest_of, in_order, train_all
from moeify.training.finished_blocks import FinishedBlocks

#: Tokens of held-out data that are computed together.
_CHUNK = 4096


def distill_layers(
    model: nn.Module,
    dense: nn.Module | str | Path,
    batches: Iterable[Batch],
    *,
    steps: int = 200,
    tokens: int = 512,
    optimizer: MakeOptimizer = adamw,
    order: Literal["forward", "backward"] | Sequence[str] = "forward",
    prefix: Literal["dense", "converted"] = "dense",
    held_out: float = 0.1,
    checks: int = 10,
    patience: int = 2,
    layers: str = "*",
    seed: int = 0,
    memory: int | str = "1GiB",
    folder: str | Path | None = None,
    progress: Progress = no_progress,
) -> tuple[BlockReport, ...]:
    """Trains each MoE layer of the converted model to give what its dense FFN gives, and returns how well it does, in the order
    of training. The loss is ||layer - FFN||^2 / ||FFN||^2.

    dense: the model before conversion; it is traced. batches: inputs of the model (labels are left out); the last
    `held_out` of them, at least one, are not trained on (of a single batch the last tokens). Padding does not count.
    steps, tokens: optimizer steps a block at most, and the tokens of each. optimizer: makes that of a block of its parameters.
    order: of the blocks by their place in the model, or site paths. prefix: the inputs of a block come from the "dense" blocks
    before it, or from the "converted" ones as they are by then. checks, patience: see `Schedule`; a block ends with the weights
    of its best check, so it never gets worse on the held-out part. layers: a glob of site paths.
    seed: of every draw. memory: what the values between two blocks may take; the rest goes to a temporary file. folder: keeps
    finished blocks; the same call goes on after them (the optimizer is not part of what is compared).

    Raises UsageError for options out of range and layers that smear, which would not see sequences; InputError for data or a
    dense model that do not fit; ConversionError for a loss that is not finite.
    """
    schedule = Schedule(steps, checks, patience, optimizer)
    if tokens < 1 or prefix not in ("dense", "converted"):
        raise UsageError(f"tokens is {tokens} and prefix {prefix!r}: choose 1 token or more, and dense or converted")
    held_out_count(1, held_out)
    data = [_without_labels(batch) for batch in batches]
    if not data:
        raise InputError("the data holds no batch to distil on")
    weight, held = next(model.parameters()), parse_size(memory, "memory")
    with evaluation_mode(model), BlockInputs(dense, data, held, weight.dtype, weight.device) as inputs:
        blocks = blocks_of(model, inputs.dense)
        chosen = in_order(blocks, order, layers)
        if smearing := [block.path for block in chosen if block.layer.config.smear]:
            raise UsageError(f"{smearing[0]}: merges experts by sequence, and blocks see tokens alone: set_smear(model, False)")
        if prefix == "converted":
            inputs.through({path: block.layer for path, block in blocks.items()})

        def about() -> dict[str, Any]:
            settings = ["layers", prefix, seed, steps, tokens, held_out, checks, patience]
            return {"weights": digest_of(blocks), "data": batches_digest(data), "settings": settings}

        finished = FinishedBlocks(folder, about, chained=prefix == "converted")

        def train(block: Block) -> BlockReport:
            return _distilled(block, inputs.of(block.path), schedule, tokens, held_out, seed)

        return train_all(chosen, train, finished, progress)


def _without_labels(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name != "labels"} if isinstance(batch, dict) else batch


def _distilled(
    block: Block, inputs: Sequence[Tensor], schedule: Schedule, tokens: int, held_out: float, seed: int
) -> BlockReport:
    train, rest = _parted(block.path, inputs, held_out)
    device = next(block.layer.parameters()).device
    draw = shuffled(len(train), tokens, f"{seed}/tokens/{block.path}")

    def squares(x: Tensor) -> tuple[Tensor, Tensor]:
        """Of the difference and of what the dense FFN gives, summed over x [tokens, hidden]."""
        with torch.no_grad():
            y = block.dense(block.layer, x).float()
        return (block.layer(x).float() - y).square().sum(), y.square().sum()

    def loss(step: int) -> Tensor:
        apart, size = squares(train[draw(step)].to(device))
        return apart / size.clamp(min=torch.finfo(torch.float32).tiny)

    @torch.no_grad()
    def measured() -> float:
        sums = [squares(x.to(device)) for x in torch.split(rest, _CHUNK)]
        return float(sum(apart for apart, _ in sums)) / max(float(sum(size for _, size in sums)), 1e-38)

    return schedule.train(block.path, block.layer, loss, measured, seed)


def _parted(path: str, inputs: Sequence[Tensor], share: float) -> tuple[Tensor, Tensor]:
    """What is trained on and what is held out, [tokens, hidden]: whole batches, or the tokens of a single one."""
    parts = inputs if len(inputs) > 1 else torch.split(inputs[0], 1)
    count = held_out_count(len(parts), share)
    train, rest = torch.cat((inputs[0][:0], *parts[:-count])), torch.cat(tuple(parts[-count:]))
    if not len(train) or not len(rest):
        raise InputError(
            f"{path}: the data leaves {len(train)} tokens to train on and {len(rest)} to hold out: give more of it"
        )
    return train, rest
