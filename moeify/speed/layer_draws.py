"""Weights of synthetic layers, and inputs that load their experts evenly.

No cache holds a stack of them, and no run sees an input twice: what is measured is what a layer costs within a large model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeify.speed.layer_shape import LayerShape
from moeify.speed.workload import Array

#: Dense weights of a stack, in last-level caches.
CACHES = 4


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """Of one layer, neuron-major as in docs/moe-layer.md; router [hidden, experts]."""

    shape: LayerShape
    up: Array
    down: Array
    gate: Array
    router: Array
    low_rank_in: Array
    low_rank_out: Array


def layers_beyond(cache: int, shape: LayerShape) -> int:
    """How many layers have dense float32 weights of more than 4 such caches; at least 2."""
    return max(2, CACHES * cache // (4 * shape.dense_weights) + 1)


def draw_weights(shape: LayerShape, rng: np.random.Generator) -> LayerWeights:
    """Normal weights. The first `experts` coordinates pass every layer unchanged and are the scores, so that whoever makes
    the input decides who is chosen in all layers."""

    def normal(*dims: int, scale: float) -> Array:
        return rng.standard_normal(dims, dtype=np.float32) * np.float32(scale)

    d, n, e = shape.hidden, shape.neurons, shape.experts
    down, low_rank_out = normal(n, d, scale=0.3 * n**-0.5), normal(shape.rank, d, scale=0.3)
    down[:, :e] = 0
    low_rank_out[:, :e] = 0
    up, gate = normal(n, d, scale=d**-0.5), normal(n if shape.gated else 0, d, scale=d**-0.5)
    router = np.zeros((d, e), dtype=np.float32)
    router[rng.permutation(e), np.arange(e)] = 1
    return LayerWeights(shape, up, down, gate, router, normal(shape.rank, d, scale=d**-0.5), low_rank_out)


@dataclass(frozen=True)
class EvenInputs:
    """x [tokens, hidden] whose choices load the experts evenly, up to one token."""

    shape: LayerShape
    cached: bool = False
    unit: str = "tokens"

    def draw(self, tokens: int, rng: np.random.Generator) -> dict[str, Array]:
        x = rng.standard_normal((tokens, self.shape.hidden), dtype=np.float32)
        scores = rng.uniform(-1, 0, (tokens, self.shape.experts))
        for row, chosen in zip(scores, self.choices(tokens, rng)):
            row[chosen] = rng.uniform(1, 2, self.shape.top_k)
        x[:, : self.shape.experts] = scores
        return {"x": x}

    def choices(self, tokens: int, rng: np.random.Generator) -> list[list[int]]:
        """top_k experts for each token; they come up in random order, round after round."""
        waiting: list[int] = []
        found = []
        for _ in range(tokens):
            chosen: list[int] = []
            while len(chosen) < self.shape.top_k:
                if not set(waiting) - set(chosen):
                    waiting += rng.permutation(self.shape.experts).tolist()
                chosen.append(next(e for e in waiting if e not in chosen))
                waiting.remove(chosen[-1])
            found.append(chosen)
        return found
