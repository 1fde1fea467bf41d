"""Training that leaves the routing as it is, and the share of the weights that it uses."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from moeify.ir.model_graph import Batch
from moeify.layers.moe_layer import MoELayer
from moeify.layers.routing import ChoiceRule, route
from moeify.measure.outputs import run, visible
from moeify.training.product_precision import Context

#: Tokens on which the used share is measured, before and after, and rows at least.
_TOKENS, _ROWS = 8192, 16


@contextmanager
def frozen_routing(layers: Collection[MoELayer]) -> Iterator[None]:
    """No gradient reaches a router, nor goes through one to its input: choice and gates are constants of the loss.

    A router of average keys goes on being that of the weights as they are.
    """
    with ExitStack() as stack:
        for layer in layers:
            if layer.router is not None:
                follow = layer.register_forward_pre_hook(lambda module, inputs: module.store_average_keys())
                hook = layer.router.register_forward_hook(lambda module, inputs, scores: scores.detach())
                stack.callback(hook.remove)
                stack.callback(follow.remove)
        yield
        for layer in layers:
            layer.store_average_keys()


@contextmanager
def kept_budget(model: nn.Module, layers: Iterable[MoELayer], rows: Sequence[Batch], precise: Context) -> Iterator[None]:
    """Moves thresholds at the end so that a token uses as many neurons as at the start, in the mean over a sample of the rows.
    precise: in what the model, but no router, multiplies as it is measured.

    A router that stays chooses otherwise when what it reads has changed: with top-k as many experts, with a threshold not.
    """
    free = [layer for layer in layers if layer.threshold is not None]
    step = max(1, len(rows) // _ROWS)
    sample = [row for first in range(step) for row in rows[first::step]]
    with precise():
        before = [_used(layer, scores, layer.threshold) for layer, scores in zip(free, _scores(model, free, sample))]
    yield
    for _ in range(2):  # a layer's threshold changes what the next ones read
        with precise():
            found = _scores(model, free, sample)
        for layer, scores, wanted in zip(free, found, before):
            layer.threshold = _threshold_for(layer, scores, wanted)


@torch.no_grad()
def _scores(model: nn.Module, layers: Sequence[MoELayer], rows: Sequence[Batch]) -> list[Tensor]:
    """What each layer's router says to the first of the rows, [tokens, experts]."""
    if not layers:
        return []
    found: list[list[Tensor]] = [[] for _ in layers]
    shown: list[Tensor | None] = []

    def keep(seen: list[Tensor], layer: MoELayer) -> object:
        return layer.register_forward_pre_hook(lambda _, inputs: seen.append(_real(_exact(layer, inputs[0]), shown[-1])))

    with ExitStack() as stack:
        for seen, layer in zip(found, layers):
            stack.callback(keep(seen, layer).remove)  # type: ignore[attr-defined]  # torch's handle
        for row in rows:
            shown.append(visible(row))
            run(model, row)
            if sum(map(len, found[0])) >= _TOKENS and len(shown) >= _ROWS:
                break
    return [torch.cat(seen) for seen in found]


def _real(scores: Tensor, shown: Tensor | None) -> Tensor:
    """Without those of padding tokens."""
    return scores if shown is None or shown.numel() != len(scores) else scores[shown.flatten().to(scores.device)]


def _exact(layer: MoELayer, x: Tensor) -> Tensor:
    """Scores [tokens, experts] in the layer's own dtype: a threshold among scores of a few bits would lie in a heap of them."""
    with torch.autocast(x.device.type, enabled=False):
        return layer.route(x.to(next(layer.parameters()).dtype)).scores


def _used(layer: MoELayer, scores: Tensor, threshold: float | None) -> float:
    """The mean number of neurons that a token uses."""
    config = layer.config
    rule = ChoiceRule(config.top_k, threshold, config.gate_rule, config.normalize)
    sizes = torch.tensor(config.sizes, dtype=torch.float64)
    return float((route(scores, rule, layer.selection_bias).chosen.cpu().double() @ sizes).mean())


def _threshold_for(layer: MoELayer, scores: Tensor, wanted: float) -> float | None:
    """By halving: the used share falls as the threshold rises."""
    low, high = float(scores.min()) - 1.0, float(scores.max()) + 1.0
    if layer.config.gate_rule != "one" or layer.selection_bias is not None:
        low, high = -2.0, 2.0  # values in 0 .. 1, and a bias of their order
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _used(layer, scores, middle) > wanted else (low, middle)
    return high
