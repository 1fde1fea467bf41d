"""How long the converted model writes the same text as the dense one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from moeify.ir.model_graph import Batch
from moeify.measure.outputs import evaluating, main_output, run, token_ids, visible


@dataclass(frozen=True)
class Greedy:
    """Greedy continuations of `prompts` prompts, each of `prompt_tokens` tokens, at most `limit` tokens long.

    tokens: how many tokens both models agree on, a prompt. mean: their mean. unchanged: how many texts never diverge.
    """

    prompts: int
    prompt_tokens: int
    limit: int
    tokens: tuple[int, ...]
    mean: float
    unchanged: int


def greedy_agreement(
    dense: nn.Module,
    other: nn.Module,
    batches: Iterable[Batch],
    *,
    prompts: int = 8,
    prompt_tokens: int = 32,
    limit: int = 64,
    end: int | None = None,
) -> Greedy | None:
    """Compares greedy texts of two causal language models; None where the data holds no prompt.

    Prompts are the beginnings of the first rows of ids. The dense model writes; then one forward of the other model on that
    text shows where its own choice differs first, which is where its greedy text would leave. end: a text is over behind
    this token. Ties go to the lower token id. Raises InputError where a model fails.
    """
    starts, named = _prompts(batches, prompts, prompt_tokens)
    limit = min(limit, _longest(dense) - prompt_tokens)
    if not len(starts) or limit < 1:
        return None
    with evaluating(dense, other):
        written = _written(dense, starts, limit, named)
        text = torch.cat((starts, written), dim=1)
        _, logits = main_output(run(other, _inputs(text[:, :-1], named)))
        chosen = logits[:, starts.shape[1] - 1 :].argmax(-1).to(written.device)
    agreed = [_agreed(mine, theirs, end) for mine, theirs in zip(written.tolist(), chosen.tolist())]
    unchanged = sum(count == limit for count in agreed)
    return Greedy(len(starts), starts.shape[1], limit, tuple(agreed), fmean(agreed), unchanged)


def _prompts(batches: Iterable[Batch], prompts: int, length: int) -> tuple[Tensor, bool]:
    """[prompts, prompt_tokens]: the beginnings of the first rows that are long enough and not padded there; and whether the
    model takes them by name."""
    rows: list[Tensor] = []
    named = True
    for batch in batches:
        named = isinstance(batch, dict)
        ids, shown = token_ids(batch), visible(batch)
        if ids is None:
            break
        for index, row in enumerate(ids):
            if len(row) >= length and (shown is None or bool(shown[index, :length].all())):
                rows.append(row[:length].cpu())
        if len(rows) >= prompts:
            break
    return (torch.stack(rows[:prompts]) if rows else torch.empty(0, length, dtype=torch.int64)), named


def _longest(model: nn.Module) -> int:
    """The longest text that the model's positions allow, where its config says so."""
    size = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return size if isinstance(size, int) and size > 0 else 1 << 62


def _inputs(ids: Tensor, named: bool, **options: Any) -> Batch:
    return {"input_ids": ids, **options} if named else (ids,)


def _written(model: nn.Module, prompts: Tensor, limit: int, named: bool) -> Tensor:
    """[prompts, limit]: the model's greedy continuation, with the key-value cache where the model has one."""
    text, step, cache = prompts, prompts, None
    for _ in range(limit):
        output = run(model, _inputs(step, named, **({} if cache is None else {"past_key_values": cache})))
        _, logits = main_output(output)
        token = logits[:, -1].argmax(-1, keepdim=True).to(text.device)
        cache = getattr(output, "past_key_values", None) if named else None
        text = torch.cat((text, token), dim=1)
        step = text if cache is None else token
    return text[:, prompts.shape[1] :]


def _agreed(written: list[int], chosen: list[int], end: int | None) -> int:
    """How many leading tokens are equal; all of them where the texts end alike before the limit."""
    for count, (mine, theirs) in enumerate(zip(written, chosen)):
        if mine != theirs:
            return count
        if mine == end:
            break
    return len(written)
