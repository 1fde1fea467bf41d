"""How far the outputs of a converted model are from those of its dense parent, as a loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moeify.errors import ConversionError
from moeify.ir.model_graph import Batch
from moeify.measure.outputs import main_output, run, visible_outputs


@dataclass(frozen=True, eq=False)
class OutputDistance:
    """mean: a scalar with a gradient, over the `vectors` (tokens) of the batch that count. kind: what is measured."""

    mean: Tensor
    vectors: int
    kind: str


def output_distance(dense: nn.Module, model: nn.Module, batch: Batch) -> OutputDistance:
    """KL(softmax(dense) || softmax(model)) in nats, where the output is called logits; else |dense - model|^2 / |dense|^2.

    By vectors of the last dim of the main output; those that the attention mask hides are left out.
    Raises ConversionError where the two differ in shape, InputError where a model fails on the batch.
    """
    with torch.no_grad():
        name, wanted = main_output(run(dense, batch))
    _, found = main_output(run(model, batch))
    if wanted.shape != found.shape:
        raise ConversionError(f"the {name} of the two models differ in shape: {list(wanted.shape)}, {list(found.shape)}")
    d, m = (output.reshape(-1, output.shape[-1]).float() for output in (wanted, found))
    shown = visible_outputs(batch)
    if shown is not None and shown.shape == wanted.shape[:-1]:
        kept = shown.flatten().to(d.device)
        d, m = d[kept], m[kept]
    if name == "logits":
        return OutputDistance(_divergences(d, m).mean(), len(d), "KL(dense || converted)")
    relative = (d - m).square().sum(-1) / d.square().sum(-1).clamp(min=1e-12)
    return OutputDistance(relative.mean(), len(d), "squared relative error")


@torch.no_grad()
def mean_distance(dense: nn.Module, model: nn.Module, batches: Iterable[Batch]) -> tuple[float, str]:
    """The mean over all vectors of the batches, and what it is a mean of."""
    total, vectors, kind = 0.0, 0, ""
    for batch in batches:
        found = output_distance(dense, model, batch)
        if found.vectors:
            total, vectors, kind = total + float(found.mean) * found.vectors, vectors + found.vectors, found.kind
    return total / max(vectors, 1), kind


def _divergences(d: Tensor, m: Tensor) -> Tensor:
    log_d = d.log_softmax(-1)
    return (log_d.exp() * (log_d - m.log_softmax(-1))).sum(-1)
