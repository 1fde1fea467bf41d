"""What an error of each feed-forward network does to the model's output."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from moeify.frontend.match import Call
from moeify.ir.feed_forward import FeedForward
from moeify.layers.channels import features_last
from moeify.splice.output_walk import OutputWalk, moved

#: Noise grows with a token's output up to so many times the median norm: a few tokens with outputs hundreds of times as large
#: would otherwise decide alone.
_CAP = 10**0.5


class EffectWalk(OutputWalk):
    """A walk on the dense model that branches at each site: its output is disturbed, and the rest of the model run on it."""

    @torch.no_grad()
    def effects(
        self, sites: Sequence[FeedForward], size: float, generator: torch.Generator, only: Collection[int] | None = None
    ) -> list[float]:
        """For each site, in execution order, how far the main output moves when normal noise of `size` times the norm of each
        token's output is added: mean KL(undisturbed || disturbed) in nats for logits, else the squared relative error.

        only: places in `sites`; the others get 0. What a site gets does not hang on which others are asked for."""
        total, vectors = [0.0] * len(sites), 0
        for number in range(len(self._states)):
            values = self._states.load(number)
            expected, logits = self._expected(number, values)
            start = 0
            for place, site in enumerate(sites):
                call = self._found.calls[site.path][-1]
                after = self._index[call.y] + 1
                self._run(values, start, after)
                start = after
                disturbed = _disturbed(values[call.y.name], call, size, generator)  # drawn in any case: the stream is one
                if only is None or place in only:
                    branch = {**values, call.y.name: disturbed}
                    self._run(branch, after, self._end)
                    total[place] += moved(expected, self._main(number, branch)[1], logits)
            vectors += len(expected)
        return [value / max(vectors, 1) for value in total]


def _disturbed(y: Tensor, call: Call, size: float, generator: torch.Generator) -> Tensor:
    rows = features_last(y) if call.channels else y
    norms = rows.float().norm(dim=-1, keepdim=True)
    norms = norms.clamp(max=_CAP * float(norms.median()))
    noise = torch.randn(rows.shape, generator=generator).to(y.device) * (size * norms / rows.shape[-1] ** 0.5)
    noise = noise.movedim(-1, 1) if call.channels else noise
    disturbed: Tensor = y + noise.to(y.dtype)
    return disturbed
