"""Ridge regression of a layer's output weights, from sums over tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_spec import MoESpec
from moeify_passes.expert_rows import ExpertRows
from moeify_passes.held_site import held_site, token_chunks
from moeify_passes.routed_output import compensation, routing_of
from moeify_passes.token_weights import TokenWeights

#: Features, what they have to add to the output so far, and what the output ought to be without the output bias, each
#: [tokens, ...], scaled by the root of the token's weight.
Scaled = tuple[Tensor, Tensor, Tensor]


class OutputFit:
    """Fits everything that is linear in the output: the down row of every row of the layer, low_rank_out, the output bias.

    Features of a token are what these multiply: gate x h of each row (0 where its expert is idle), x low_rank_in^T, and 1.
    stream: how far the output is to go from what the dense FFN says to the goals that are given, 0 to 1.
    """

    def __init__(self, site: FeedForward, spec: MoESpec, rows: ExpertRows, weights: TokenWeights, stream: float = 1.0) -> None:
        self.stream = stream
        self.dense, self.spec, self.rows, self.token_weights = held_site(site), spec, rows, weights
        low_rank = spec.compensation.low_rank_out
        parts = [rows.tensors["down"], *([] if low_rank is None else [low_rank.float()])]
        self._partitions = spec.partitions(site.neurons)
        self.start = torch.cat([*parts, rows.tensors.get("output_bias", torch.zeros(site.output))[None]])

    def scaled(self, inputs: Tensor, goals: Tensor | None = None) -> Iterator[Scaled]:
        """Chunks of tokens of inputs [tokens, hidden]. goals: where the output is to go, output bias included, [tokens,
        output]; None: to what the dense FFN says."""
        done = 0
        for x in token_chunks(inputs, len(self.start)):
            routing, low_rank = routing_of(self.spec, x), self.spec.compensation.low_rank_in
            h = self.rows.hidden(x)
            parts = [self.rows.gated(h, routing.gates), torch.ones(len(x), 1)]
            if low_rank is not None:
                parts.insert(1, x @ low_rank.float().T)
            own = 0.0 if self.dense.output_bias is None else self.dense.output_bias.read()
            features = torch.cat(parts, 1)
            goal = self._dense_output(x, h)
            if goals is not None:
                goal = goal.lerp(goals[done : done + len(x)] - own, self.stream)
                done += len(x)
            idle = compensation(self._without_low_rank, routing, x)
            root = self.token_weights.weights(goal).sqrt_()[:, None]
            yield features * root, (goal + own - idle - features @ self.start) * root, goal * root

    def _dense_output(self, x: Tensor, h: Tensor) -> Tensor:
        """Of the dense FFN without its bias; h: what the layer's rows give for x, which are often all of the dense ones."""
        if self._partitions:
            return h @ self.rows.tensors["down"]
        return self.dense.neuron_outputs(x) @ self.dense.down.read()

    def candidates(self, inputs: Tensor, goals: Tensor | None = None) -> Callable[[float], Tensor]:
        """The best weights for inputs [tokens, hidden] and goals [tokens, output] (see `scaled`), as a function of how strongly
        they are held to those so far.

        The penalty on the change of a feature's weights is `strength` times the feature's own sum of squares; on the bias there
        is none. Solved by Cholesky decomposition in float32, which features of length 1 make safe.
        """
        width = len(self.start)
        gram, right = torch.zeros(width, width), torch.zeros(width, self.start.shape[1])
        for features, missing, _ in self.scaled(inputs, goals):
            gram.addmm_(features.T, features)
            right.addmm_(features.T, missing)
        length = gram.diagonal().sqrt()
        unit = torch.where(length > 1e-6 * length.max(), 1 / length, 0.0)
        gram.mul_(unit).mul_(unit[:, None])

        def solve(strength: float) -> Tensor:
            penalty = torch.full((width,), strength)
            penalty[-1] = 1e-6
            penalty[unit == 0] = 1.0
            lower = torch.linalg.cholesky(gram + torch.diag(penalty))
            return self.start + unit[:, None] * torch.cholesky_solve(right * unit[:, None], lower)

        return solve

    def errors(self, inputs: Tensor, found: Sequence[Tensor], goals: Tensor | None = None) -> list[float]:
        """Weighted squared error with each of the weights `found` (as `start`) on inputs [tokens, hidden] / weighted squared
        goals [tokens, output] (see `scaled`)."""
        missed, size = [0.0] * len(found), 0.0
        for features, missing, goal in self.scaled(inputs, goals):
            for i, weights in enumerate(found):
                left = missing if weights is self.start else missing - features @ (weights - self.start)
                missed[i] += float(left.square().sum(dtype=torch.float64))
            size += float(goal.square().sum(dtype=torch.float64))
        return [error / max(size, 1e-300) for error in missed]

    @property
    def _without_low_rank(self) -> MoESpec:
        return replace(self.spec, compensation=replace(self.spec.compensation, low_rank_in=None, low_rank_out=None))
