"""Shares that a search over whole divisions of the budget has found, each tried on the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import Batch, ModelGraph, StandIn, Trial
from moeify.pipeline.context import PassContext
from moeify_passes.held_site import token_chunks
from moeify_passes.shares.error_curves import curve_rules, gain_curves
from moeify_passes.shares.gain_curve import GainCurve
from moeify_passes.shares.output_effects import check_noise, output_effects
from moeify_passes.shares.share_rule import Limits, ShareRule, divided

#: What a layer's share is tried at, times the one that it would get, beside that one.
_FACTORS = (0.8, 1.25)


@dataclass(frozen=True)
class BeamSearch:
    """Tries divisions of the budget on the model, layer by layer, and goes on with the `width` best.

    Each layer in turn gets the share that `curves` would give it, or 0.8 or 1.25 times as much, and the layers after it what
    `curves` makes of the rest. Of every such division the divergence of the model's output is measured, all layers running on
    each token the neurons of the largest gains that their shares pay for: what is lost in one layer changes what the others
    lose, which no curve of single layers shows. It takes about `width` runs of the model for each layer.
    """

    width: int = 4
    noise: float = 0.3

    kind: ClassVar[str] = "beam"

    def __post_init__(self) -> None:
        check_noise(self.kind, self.noise)
        if not self.width > 0:
            raise UsageError(f"{self.kind}.width is {self.width}: choose a number above 0")

    def shares(self, graph: ModelGraph, batches: Sequence[Batch], context: PassContext, limits: Limits) -> list[float]:
        """One for each site. Raises ConversionError where the model's output is not finite."""
        curves = gain_curves(graph, batches)
        rules = curve_rules(graph, curves, output_effects(graph, batches, self.noise, context))
        search = _Search(graph.sites, rules, curves, limits)
        with graph.host.trials(batches) as start:
            beam = [search.begin(start)]
            for place in range(len(graph.sites)):
                context.progress("trying budgets", place, len(graph.sites))
                found = [division for each in beam for division in search.next_to(each)]
                beam = [search.past(each) for each in sorted(found, key=lambda each: each.distance)[: self.width]]
        return list(beam[0].shares)


@dataclass(frozen=True, eq=False)
class _Division:
    """A whole division of the budget: the shares of all layers, how far it leaves the model's output from the dense one, and a
    trial that has come past the first `settled` layers with it."""

    shares: tuple[float, ...]
    distance: float
    trial: Trial
    settled: int = 0


@dataclass(frozen=True, eq=False)
class _Search:
    sites: Sequence[FeedForward]
    rules: Sequence[ShareRule]
    curves: Sequence[GainCurve]
    limits: Limits

    def begin(self, start: Trial) -> _Division:
        return self._tried(tuple(divided(self.limits, self.sites, self.rules)), start, 0)

    def next_to(self, division: _Division) -> Iterator[_Division]:
        """The division itself, and those in which its first layer that is not settled gets less or more."""
        place = division.settled
        yield division
        for factor in _FACTORS:
            share = self.limits.within(min(division.shares[place] * factor, 1.0))
            rest = self._rest((*division.shares[:place], share))
            if share != division.shares[place] and rest is not None:
                yield self._tried((*division.shares[:place], share, *rest), division.trial, place)

    def past(self, division: _Division) -> _Division:
        """The division with one more layer settled."""
        place = division.settled
        trial = division.trial.past(self.sites[place], self._stand_in(place, division.shares[place]))
        return replace(division, trial=trial, settled=place + 1)

    def _tried(self, shares: tuple[float, ...], trial: Trial, settled: int) -> _Division:
        ahead = {self.sites[i].path: self._stand_in(i, shares[i]) for i in range(settled, len(shares))}
        return _Division(shares, trial.distance(ahead), trial, settled)

    def _rest(self, given: Sequence[float]) -> list[float] | None:
        """What the layers after these get; None where they would get too little, or could not use what is left."""
        behind, ahead = self.sites[: len(given)], self.sites[len(given) :]
        left = self.limits.active * _weights(self.sites) - sum(s * site.parameters for s, site in zip(given, behind))
        if not ahead:
            return [] if left >= 0 else None
        active = left / _weights(ahead)
        if not self.limits.least <= active <= 1:
            return None
        return divided(replace(self.limits, active=active), ahead, self.rules[len(given) :])

    def _stand_in(self, place: int, share: float) -> StandIn:
        return partial(_running, self.sites[place], self.curves[place], share)


def _weights(sites: Sequence[FeedForward]) -> int:
    return sum(site.parameters for site in sites)


def _running(site: FeedForward, curve: GainCurve, share: float, x: Tensor) -> Tensor:
    """The outputs [tokens, output] for x [tokens, hidden] where on each token the neurons of the largest gains run."""
    down = site.down.read().float()
    bias = None if site.output_bias is None else site.output_bias.read().float()
    parts = []
    for chunk in token_chunks(x, max(site.neurons, site.output)):
        h = site.neuron_outputs(chunk)
        y = h.masked_fill(~curve.running(h, down, share), 0.0) @ down
        parts.append(y if bias is None else y + bias)
    return torch.cat(parts)
