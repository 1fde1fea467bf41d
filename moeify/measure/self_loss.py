"""A loss that needs no labels, to ask a trained model what matters to it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from moeify.errors import InputError
from moeify.ir.model_graph import Batch
from moeify.measure.outputs import token_ids, visible, visible_outputs


def next_token_loss(logits: Tensor, batch: Batch) -> Tensor:
    """The summed cross-entropy of each next token, in nats; logits [rows, tokens, vocabulary]. What the mask hides is left out.

    Raises InputError where the batch holds no ids that the logits could predict.
    """
    ids, shown = token_ids(batch), visible(batch)
    if ids is None or logits.ndim != 3 or logits.shape[:2] != ids.shape:
        raise InputError(f"next-token loss needs logits [rows, tokens, vocabulary] of input_ids, found {list(logits.shape)}")
    targets = ids[:, 1:].to(logits.device)
    each = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten(), reduction="none").view(targets.shape)
    if shown is None:
        return each.sum()
    return (each * (shown[:, 1:] & shown[:, :-1]).to(each)).sum()


def energy_loss(output: Tensor, batch: Batch) -> Tensor:
    """Half the squared distance of every output vector from its own mean, summed: its gradient is what sets outputs apart.

    output: [rows, ..., features]; padding is left out where the output is of the tokens that the mask marks.
    """
    flat = output.float()
    each = (flat - flat.mean(-1, keepdim=True)).square().sum(-1) / 2
    shown = visible_outputs(batch)
    return each.sum() if shown is None or shown.shape != each.shape else (each * shown.to(each)).sum()
