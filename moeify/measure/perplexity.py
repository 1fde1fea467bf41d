"""Perplexity of a causal language model: the exponential of the mean negative log-likelihood of each next token."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from moeify.errors import InputError
from moeify.ir.model_graph import Batch
from moeify.measure.outputs import chunks, evaluating, finite, main_output, run, token_ids, visible


@dataclass(frozen=True)
class Perplexity:
    """value: exp(nll). nll: mean negative log-likelihood in nats, each predicted token weighing the same.

    standard_error: of `value`, from the scatter of the windows (delta method); None for fewer than two windows.
    tokens: the number of tokens predicted (the first of each window is not). windows: of each window, in order, the sum of its
    log-likelihoods, negated, and their number: two models judged on one text are compared window by window.
    """

    value: float
    nll: float
    standard_error: float | None
    tokens: int
    windows: tuple[tuple[float, int], ...] = field(default=(), repr=False)


@dataclass
class PerplexitySum:
    """Adds up batches; holds two numbers a window."""

    windows: list[tuple[float, int]] = field(default_factory=list)

    def add(self, logits: Tensor, batch: Batch) -> None:
        """logits [rows, tokens, vocabulary] of the batch's ids; what the attention mask hides is not predicted."""
        ids, shown = token_ids(batch), visible(batch)
        if ids is None or logits.ndim != 3 or logits.shape[:2] != ids.shape:
            raise InputError(f"perplexity needs logits [rows, tokens, vocabulary] of input_ids, found {list(logits.shape)}")
        for row in range(ids.shape[0]):
            targets = ids[row, 1:].to(logits.device)
            mask = None if shown is None else (shown[row, 1:] & shown[row, :-1]).to(logits.device)
            self.windows.append(_window(logits[row, :-1], targets, mask))

    def result(self) -> Perplexity:
        """Raises InputError where no token was predicted."""
        tokens = sum(count for _, count in self.windows)
        if not tokens:
            raise InputError("the data holds no token to predict; give windows of at least two tokens")
        nll = math.fsum(total for total, _ in self.windows) / tokens
        value = math.exp(nll) if nll < 700 else math.inf
        count, windows = len(self.windows), tuple(self.windows)
        if count < 2:
            return Perplexity(value, nll, None, tokens, windows)
        scatter = math.fsum((total - nll * size) ** 2 for total, size in self.windows)
        return Perplexity(value, nll, value * math.sqrt(count / (count - 1) * scatter) / tokens, tokens, windows)


def perplexity(model: nn.Module, batches: Iterable[Batch]) -> Perplexity:
    """Perplexity of the model on the batches; only a few hundred tokens are held in float64 at once.

    Raises InputError where the outputs are no next-token logits, ConversionError where they are not finite.
    """
    total = PerplexitySum()
    with evaluating(model):
        for batch in batches:
            name, logits = main_output(run(model, batch))
            total.add(finite(logits, name, "measured"), batch)
    return total.result()


def _window(logits: Tensor, targets: Tensor, mask: Tensor | None) -> tuple[float, int]:
    """(sum of the negative log-likelihoods, their number) of logits [tokens, vocabulary] and targets [tokens]."""
    total, count = 0.0, 0
    for part, wanted, shown in zip(chunks(logits), chunks(targets), [None] * len(targets) if mask is None else chunks(mask)):
        exact = part.double()
        losses = torch.logsumexp(exact, -1) - exact.gather(-1, wanted[:, None]).squeeze(-1)
        losses = losses if shown is None else losses[shown]
        total, count = total + float(losses.sum()), count + losses.numel()
    return total, count
