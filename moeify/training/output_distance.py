"""How far the outputs of a converted model are from those of its dense parent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from moeify.errors import ConversionError
from moeify.ir.model_graph import Batch
from moeify.measure.outputs import main_output, run, visible_outputs
from moeify.training.strips import strips

#: The kinds of distance: KL(softmax(dense) || softmax(model)) in nats, and |dense - model|^2 / |dense|^2.
DIVERGENCE, ERROR = "KL(dense || converted)", "squared relative error"


@torch.no_grad()
def mean_distance(dense: nn.Module, model: nn.Module, batches: Iterable[Batch]) -> tuple[float, str]:
    """The mean over all vectors (tokens) of the batches that count, and what it is a mean of: DIVERGENCE where the output is
    called logits, else ERROR.

    Raises ConversionError where the outputs of the two differ in shape, InputError where a model fails on a batch.
    """
    total, vectors, kind = 0.0, 0, ""
    for batch in batches:
        (name, wanted), (_, found) = (counted_vectors(m, batch) for m in (dense, model))
        same_shape(name, wanted.shape, found.shape)
        logits = name == "logits"
        kind = DIVERGENCE if logits else ERROR
        distances = _divergences if logits else relative_errors
        total += sum(float(distances(wanted[strip].float(), found[strip].float()).sum()) for strip in strips(wanted))
        vectors += len(wanted)
    return total / max(vectors, 1), kind


def counted_vectors(model: nn.Module, batch: Batch) -> tuple[str, Tensor]:
    """The name of the main output and its vectors [vectors, width] but for those that the attention mask hides."""
    name, output = main_output(run(model, batch))
    shown = visible_outputs(batch)
    flat = output.reshape(-1, output.shape[-1])
    return name, flat if shown is None or shown.shape != output.shape[:-1] else flat[shown.flatten().to(flat.device)]


def same_shape(name: str, dense: Sequence[int], converted: Sequence[int]) -> None:
    """Raises ConversionError where the outputs of two models are not of one shape."""
    if tuple(dense) != tuple(converted):
        raise ConversionError(f"the {name} of the two models differ in shape: {list(dense)}, {list(converted)}")


def relative_errors(d: Tensor, m: Tensor) -> Tensor:
    """|d - m|^2 / |d|^2 of each vector [vectors, width]."""
    return (d - m).square().sum(-1) / d.square().sum(-1).clamp(min=1e-12)


def _divergences(d: Tensor, m: Tensor) -> Tensor:
    log_d = d.log_softmax(-1)
    return (log_d.exp() * (log_d - m.log_softmax(-1))).sum(-1)
