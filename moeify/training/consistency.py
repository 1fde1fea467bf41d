"""Two passes with other experts drawn, and the loss that makes them agree (THOR, Zuo et al. 2022, section 3, equation 3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from moeify.errors import UsageError

#: One forward of the model on a batch: the task's loss (a scalar) and the logits [..., classes].
Pass = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class TwoPasses:
    """loss = task + alpha x consistency; task: the sum of both passes' losses. All are scalars with a gradient.

    logits: of the first and the second pass.
    """

    loss: Tensor
    task: Tensor
    consistency: Tensor
    logits: tuple[Tensor, Tensor]


def symmetric_divergence(first: Tensor, second: Tensor, mask: Tensor | None = None) -> Tensor:
    """(KL(p || q) + KL(q || p)) / 2 of the softmax of two logits [..., classes], the mean over tokens; in nats, a scalar.

    mask [...]: nonzero for tokens that count, such as those that are not padding; with none the result is 0. The authors' code
    sums over tokens where its task loss is a sum too, which weighs the two alike.
    Raises UsageError for shapes that do not fit.
    """
    if first.shape != second.shape or (mask is not None and mask.shape != first.shape[:-1]):
        shapes = ", ".join(str(list(t.shape)) for t in (first, second, *(() if mask is None else (mask,))))
        raise UsageError(
            f"consistency needs two logits of one shape and a mask without their last axis; the shapes are {shapes}"
        )
    log_p, log_q = (logits.float().log_softmax(-1) for logits in (first, second))
    each = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1) / 2
    if mask is None:
        return each.mean()
    counted = (mask != 0).to(each.dtype)
    return (each * counted).sum() / counted.sum().clamp(min=1)


def two_passes(run: Pass, alpha: float = 5.0, mask: Tensor | None = None) -> TwoPasses:
    """Calls `run` twice, each time with experts drawn anew, and adds up. The caller calls `backward` on the loss.

    run: forwards the model, in training mode, on one and the same batch. alpha: weight of the consistency (5 in the paper).
    mask: see `symmetric_divergence`. Raises UsageError for an alpha below 0.

        def run() -> tuple[Tensor, Tensor]:
            output = model(**batch, labels=labels)
            return output.loss, output.logits

        two_passes(run).loss.backward()
    """
    if not 0 <= alpha < math.inf:
        raise UsageError(f"alpha is {alpha}: choose a number from 0, such as 5")
    (first_loss, first), (second_loss, second) = run(), run()
    consistency = symmetric_divergence(first, second, mask)
    task = first_loss + second_loss
    return TwoPasses(task + alpha * consistency, task, consistency, (first, second))
