"""The MoE layers of a converted model as blocks, each with the weights of the dense FFN that it was made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from moeify.errors import InputError, UsageError, did_you_mean
from moeify.frontend.traced import live_tensor
from moeify.layers.budget import moe_layers
from moeify.layers.dense_ffn import DenseWeights
from moeify.layers.moe_layer import MoELayer
from moeify.measure.gathered import dense_function
from moeify.measure.substitute import Compute
from moeify.pipeline.context import Progress
from moeify.splice.way_back import check_way_back
from moeify.training.block_training import BlockReport
from moeify.training.finished_blocks import FinishedBlocks, weights_digest


@dataclass(frozen=True, eq=False)
class Block:
    """path: of the site that it was made of. parent: the weights of the dense FFN, detached, where the layer's are."""

    path: str
    layer: MoELayer
    parent: DenseWeights

    @property
    def dense(self) -> Compute:
        """y [tokens, output] of x [tokens, hidden], by the dense FFN."""
        return dense_function(self.layer, self.parent)


def blocks_of(model: nn.Module, dense: nn.Module) -> dict[str, Block]:
    """All MoE layers of the model, by the paths of their sites, in the model's order.

    Raises UsageError for a model without MoE layers, InputError for a dense model that it was not made of.
    """
    found = {}
    for path, layer in moe_layers(model).items():
        origin = check_way_back(path, layer)
        parent = {}
        for role, place in origin.places.items():
            value = live_tensor(dense, place.parameter)
            if value is None or place.view(value).shape != place.shape:
                raise InputError(
                    f"{type(dense).__name__} is not the dense model of {origin.path}: {place.parameter} is not there, or has "
                    "another shape (a model in memory is converted in place: load the dense one anew)"
                )
            parent[role] = place.view(value.detach()).to(next(layer.parameters()).device)
        found[origin.path] = Block(origin.path, layer, parent)
    if not found:
        raise UsageError(f"{type(model).__name__} has no MoE layers: convert it first")
    return found


def in_order(blocks: Mapping[str, Block], order: str | Sequence[str], layers: str) -> list[Block]:
    """Those whose path matches the glob, "forward", "backward", or as listed. Raises UsageError for what is none of that."""
    known = [path for path in blocks if fnmatchcase(path, layers)]
    if not known:
        raise UsageError(f"no MoE layer matches {layers!r}: {did_you_mean(layers, blocks)}")
    if order not in ("forward", "backward") and isinstance(order, str):
        raise UsageError(f"order is {order!r}: choose forward, backward or a list of paths")
    if isinstance(order, str):
        return [blocks[path] for path in (known if order == "forward" else known[::-1])]
    for path in order:
        if path not in known:
            raise UsageError(f"order names {path!r}, which is no block: {did_you_mean(path, known)}")
    return [blocks[path] for path in order]


def train_all(
    blocks: Sequence[Block], train: Callable[[Block], BlockReport], finished: FinishedBlocks, progress: Progress
) -> tuple[BlockReport, ...]:
    """Trains one block after the other, those left out that are finished already."""
    reports = []
    for number, block in enumerate(blocks):
        progress("distilling blocks", number, len(blocks))
        report = finished.find(block.path, block.layer)
        if report is None:
            report = train(block)
            finished.keep(block.path, block.layer, report)
        finished.leave(block.path)
        reports.append(report)
    progress("distilling blocks", len(blocks), len(blocks))
    return tuple(reports)


def digest_of(blocks: Mapping[str, Block]) -> str:
    """A digest of the weights of all blocks and of their parents."""
    return weights_digest(*(tensors for block in blocks.values() for tensors in (block.layer.state_dict(), block.parent)))
