"""Experts that were trained apart (Branch-Train-MiX, Sukhbaatar et al. 2024, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from moeify.errors import ConversionError, UsageError
from moeify.ir.feed_forward import FeedForward, ReadTensor
from moeify.pipeline.context import PassContext
from moeify_passes.upcycling.dense_weights import NeuronWeights, dense_weights


@dataclass(frozen=True)
class Checkpoints:
    """Every expert is the FFN of another checkpoint of the same model, fine-tuned on something else.

    paths: the checkpoints, one an expert, in anything that the base model could be given in; name the base itself to have it
    among the experts. Their output biases are averaged, for the layer has one. The rest of the model stays the base's.
    """

    paths: tuple[str, ...] | list[str]

    kind: ClassVar[str] = "checkpoints"
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.paths, list | tuple) or not all(isinstance(path, str) for path in self.paths):
            raise UsageError(f"checkpoints.paths is {self.paths!r}: give a list of paths")
        object.__setattr__(self, "paths", tuple(self.paths))  # TOML gives lists
        if len(self.paths) < 2:
            raise UsageError(f"checkpoints.paths names {len(self.paths)} checkpoints: give two or more, one an expert")

    def copy(self, site: FeedForward, dense: NeuronWeights, number: int, context: PassContext) -> NeuronWeights:
        """The weights of copy `number` (from 0)."""
        found = dense_weights(site, _opened(context, self.paths[number]))
        return {name: weight.to(dense[name].dtype) for name, weight in found.items()}

    def output_bias(self, site: FeedForward, context: PassContext) -> Tensor | None:
        """The layer's output bias [output]: the mean of the checkpoints'."""
        if site.output_bias is None:
            return None
        found = [replace(site.output_bias, load=_opened(context, path)).read().double() for path in self.paths]
        return torch.stack(found).mean(0).to(site.output_bias.read().dtype)


def _opened(context: PassContext, path: str) -> ReadTensor:
    if context.checkpoint is None:
        raise ConversionError(f"{path}: this run cannot open other checkpoints of the model: convert it with moeify.convert")
    return context.checkpoint(path)
