"""What an error of each feed-forward network does to the model's output."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from moeify.frontend.match import Call
from moeify.ir.feed_forward import FeedForward
from moeify.layers.channels import features_last
from moeify.measure.outputs import main_output
from moeify.splice.walk import GraphWalk

#: Noise grows with a token's output up to so many times the median norm: a few tokens with outputs hundreds of times as large
#: would otherwise decide alone.
_CAP = 10**0.5


class EffectWalk(GraphWalk):
    """A walk on the dense model that branches at each site: its output is disturbed, and the rest of the model run on it."""

    @torch.no_grad()
    def effects(
        self, sites: Sequence[FeedForward], size: float, generator: torch.Generator, only: Collection[int] | None = None
    ) -> list[float]:
        """For each site, in execution order, how far the main output moves when normal noise of `size` times the norm of each
        token's output is added: mean KL(undisturbed || disturbed) in nats for logits, else the squared relative error.

        only: places in `sites`; the others get 0. What a site gets does not hang on which others are asked for."""
        total, vectors = [0.0] * len(sites), 0
        end = self._index[self._output]
        for number in range(len(self._states)):
            values = self._states.load(number)
            whole = dict(values)
            self._run(whole, 0, end)
            name, undisturbed = self._main(whole)
            logits = name == "logits"
            expected = undisturbed.float().log_softmax(-1) if logits else undisturbed  # once: a vocabulary is wide
            del whole
            start = 0
            for place, site in enumerate(sites):
                call = self._found.calls[site.path][-1]
                after = self._index[call.y] + 1
                self._run(values, start, after)
                start = after
                disturbed = _disturbed(values[call.y.name], call, size, generator)  # drawn in any case: the stream is one
                if only is None or place in only:
                    branch = {**values, call.y.name: disturbed}
                    self._run(branch, after, end)
                    total[place] += _moved(expected, self._main(branch)[1], logits)
            vectors += undisturbed[..., 0].numel()
        return [value / max(vectors, 1) for value in total]

    @property
    def _output(self) -> fx.Node:
        found: fx.Node = self._nodes[-1]
        return found

    def _main(self, values: dict[str, Any]) -> tuple[str, Tensor]:
        leaves = [self._value(leaf, values) if isinstance(leaf, fx.Node) else leaf for leaf in self._output.args[0]]  # type: ignore[union-attr]  # a tuple
        return main_output(pytree.tree_unflatten(leaves, self._traced.output_spec))


def _disturbed(y: Tensor, call: Call, size: float, generator: torch.Generator) -> Tensor:
    rows = features_last(y) if call.channels else y
    norms = rows.float().norm(dim=-1, keepdim=True)
    norms = norms.clamp(max=_CAP * float(norms.median()))
    noise = torch.randn(rows.shape, generator=generator).to(y.device) * (size * norms / rows.shape[-1] ** 0.5)
    noise = noise.movedim(-1, 1) if call.channels else noise
    disturbed: Tensor = y + noise.to(y.dtype)
    return disturbed


def _moved(expected: Tensor, other: Tensor, logits: bool) -> float:
    """Summed over vectors, the last dim. other: logits where `expected` are logarithms of probabilities, else alike."""
    total = 0.0
    for d, m in _pairs(expected, other):
        if logits:
            total += float((d.exp() * (d - m.log_softmax(-1))).sum(dtype=torch.float64))
        else:
            total += float(((d - m).square().sum(-1) / d.square().sum(-1).clamp(min=1e-30)).sum(dtype=torch.float64))
    return max(total, 0.0)


def _pairs(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    width = a.shape[-1] if a.ndim else 1
    for d, m in zip(torch.split(a.reshape(-1, width), 256), torch.split(b.reshape(-1, width), 256)):
        yield d.float(), m.float()
