"""What becomes of the model's output when other functions stand in for its feed-forward networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import StandIn
from moeify.splice.output_walk import OutputWalk, moved
from moeify.splice.spill import Values


class TrialWalk(OutputWalk):
    """Runs the model from anywhere on, again and again, with other functions for some FFNs."""

    @property
    def start(self) -> BranchTrial:
        """Where nothing has run yet."""
        return BranchTrial(self, tuple(self._states.load(number) for number in range(len(self._states))), 0, {})

    @torch.no_grad()
    def past(self, trial: BranchTrial, site: FeedForward, stand_in: StandIn) -> BranchTrial:
        """Behind the site's first call."""
        stand_ins = {**trial.stand_ins, site.path: _StandIn(stand_in)}
        end = self._index[self._found.calls[site.path][0].y] + 1
        return BranchTrial(self, self._run_on(trial, stand_ins, end), end, stand_ins)

    @torch.no_grad()
    def distance(self, trial: BranchTrial, stand_ins: Mapping[str, StandIn]) -> float:
        """That of the main output from the dense model's, as `Trial.distance` says."""
        modules = {path: _StandIn(stand_in) for path, stand_in in stand_ins.items()}
        goals, ends = self._goals, self._run_on(trial, {**trial.stand_ins, **modules}, self._end)
        total = 0.0
        for number, ((expected, logits), values) in enumerate(zip(goals, ends)):
            total += moved(expected, self._main(number, values)[1], logits)
        return total / max(sum(len(expected) for expected, _ in goals), 1)

    @cached_property
    def _goals(self) -> list[tuple[Tensor, bool]]:
        """The dense model's main output for each batch."""
        self._layers = None
        return [self._expected(number, values) for number, values in enumerate(self.start.values)]

    def _run_on(self, trial: BranchTrial, stand_ins: Mapping[str, nn.Module], end: int) -> tuple[Values, ...]:
        self._layers = stand_ins
        found = tuple(dict(values) for values in trial.values)
        for values in found:
            self._run(values, trial.position, end)
        return found


@dataclass(frozen=True, eq=False)
class BranchTrial:
    """A Trial: the values of each batch where it has come to, and the stand-ins for the sites behind it."""

    walk: TrialWalk
    values: tuple[Values, ...]
    position: int
    stand_ins: Mapping[str, nn.Module]

    def past(self, site: FeedForward, stand_in: StandIn) -> BranchTrial:
        return self.walk.past(self, site, stand_in)

    def distance(self, stand_ins: Mapping[str, StandIn]) -> float:
        return self.walk.distance(self, stand_ins)


class _StandIn(nn.Module):
    """x [..., hidden] -> [..., output] of a function of tokens."""

    def __init__(self, function: StandIn) -> None:
        super().__init__()
        self._function = function

    def forward(self, x: Tensor) -> Tensor:
        y = self._function(x.reshape(-1, x.shape[-1]).cpu().float())
        return y.reshape(*x.shape[:-1], y.shape[-1]).to(x)
