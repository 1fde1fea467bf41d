"""The router that predicts what each expert is worth: how much smaller it makes the error of the output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.facts import ActivationSample, Budget, Fact
from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.ir.moe_spec import MoESpec, Router
from moeify.pipeline.context import PassContext
from moeify_passes.expert_rows import ExpertRows, expert_rows, norms_of_hidden, squared_norms
from moeify_passes.held_site import held_site, token_chunks
from moeify_passes.routers.held_out import held_out
from moeify_passes.routers.reduced_rank import ReducedRankFit
from moeify_passes.token_weights import TokenWeights

#: Tokens that the mean gain is taken over.
_TOKENS = 512


@dataclass(frozen=True)
class GainRegression:
    """Predicts the squared norm of each expert's output, in a logarithm, by a linear map of low rank; in closed form.

    score_e(x) is fitted to log(gain_e / mean gain + floor), gain_e = ||E_e(x)||^2, the error that the expert's absence would
    leave (experts taken as uncorrelated); the mean is over experts and tokens. Other than the norm itself (D2DMoE, section 3.2)
    the logarithm asks for the order of experts, which is all that the choice looks at, not for the sizes of the largest.

    rank: a count, or a fraction of the FFN's inputs; the router costs rank x (inputs + experts) weights. floor: gains far below
    this part of the mean one count as equal (above 0). ridge: penalty on squared weights for inputs scaled to variance 1.

    even_below: where allocate-budget gave a layer less than this fraction, tokens are to differ less in how many experts a
    threshold lets them use: a token's mean score, times 1 - budget / even_below, is taken off all of its scores (which leaves
    their order, and top-k, as they are). 0: nowhere.
    """

    rank: int | float = 0.1
    floor: float = 0.5
    ridge: float = 0.01
    even_below: float = 0.0

    kind: ClassVar[str] = "gain-regression"
    needs: ClassVar[tuple[type[Fact], ...]] = (ActivationSample,)
    uses: ClassVar[tuple[type[Fact], ...]] = (Budget,)

    def __post_init__(self) -> None:
        if self.rank <= 0 or (isinstance(self.rank, float) and self.rank > 1):
            raise UsageError(f"gain-regression.rank is {self.rank}: choose a count from 1 or a fraction of at most 1.0")
        for name in ("floor", "ridge"):
            if not getattr(self, name) > 0:
                raise UsageError(f"gain-regression.{name} is {getattr(self, name)}: choose a number above 0")
        if not 0 <= self.even_below <= 1:
            raise UsageError(f"gain-regression.even_below is {self.even_below}: choose a fraction from 0 to 1")

    def shape(self, config: MoEConfig) -> RouterConfig:
        """The router's shape in front of a layer of that shape."""
        width = self.rank if isinstance(self.rank, int) else max(1, round(self.rank * config.hidden))
        return RouterConfig("mlp", bias=True, width=min(width, config.hidden), activation="identity")

    def route(self, site: FeedForward, spec: MoESpec, context: PassContext) -> Router:
        """The router for the spec's experts, fitted on nine tenths of the sample."""
        x, _ = held_out(site, context.get(site, ActivationSample).inputs, context.generator("held-out", site))
        shape = self.shape(spec.config(site))
        tensors = gain_fit(site, spec, x, self.floor).solve(shape.width or 1, self.ridge)
        for out in (tensors["weight_out"], tensors["bias_out"]):  # the mean over experts is linear, as scores are
            out -= self._evened(site, context) * out.mean(0)
        return Router(shape, tensors)

    def _evened(self, site: FeedForward, context: PassContext) -> float:
        """What part of a token's mean score is taken off."""
        budget = context.find(site, Budget)
        return 0.0 if budget is None or budget.active >= self.even_below else 1 - budget.active / self.even_below


def gain_fit(site: FeedForward, spec: MoESpec, x: Tensor, floor: float) -> ReducedRankFit:
    """The sums from which log(gain_e(x) / mean gain + floor), up to a constant, is predicted for every expert of the spec.

    x: [tokens, hidden].
    """
    rows, dense = expert_rows(site, spec), held_site(site)
    weights = TokenWeights.of(dense, x)

    def gains(chunk: Tensor) -> Tensor:
        """||E_e(x)||^2 times the token's weight, [tokens, experts]."""
        if not spec.partitions(site.neurons):
            return squared_norms(rows, chunk) * weights.weights(dense.neuron_outputs(chunk) @ dense.down.read())[:, None]
        h = rows.hidden(chunk)
        return norms_of_hidden(rows, h) * weights.weights(h @ rows.tensors["down"])[:, None]

    some = torch.cat([gains(chunk) for chunk in _chunks(rows, x[:: max(1, len(x) // _TOKENS)], site.output)])
    least = max(floor * float(some.mean(dtype=torch.float64)), torch.finfo(torch.float32).tiny)
    fit = ReducedRankFit(x, rows.experts)
    for chunk in _chunks(rows, x, site.output):
        fit.add(chunk, gains(chunk).add_(least).log_())
    return fit


def _chunks(rows: ExpertRows, x: Tensor, width: int) -> list[Tensor]:
    return list(token_chunks(x, max(rows.offsets[-1], width)))
