"""Which experts a model in training uses, for any loop to log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from moeify.errors import UsageError
from moeify.layers.budget import moe_layers
from moeify.layers.training_notes import Count, Tally
from moeify.layers.training_rule import TrainingRule
from moeify.layers.training_state import TrainingState
from moeify.training.settings import enter


@dataclass(frozen=True)
class LayerReading:
    """One layer since the last reading. tokens: how many it saw, padding left out. shares [experts]: the share of these tokens
    that each expert was chosen by, before dropout and capacity; they sum to the mean number of experts on. dead: experts that
    no token chose. entropy: of the router's probabilities, the mean over tokens, in nats; from 0 to log(experts). dropped: the
    share of choices that capacity left no room for.
    """

    tokens: int
    shares: tuple[float, ...]
    dead: tuple[int, ...]
    entropy: float
    dropped: float


class ExpertLoad:
    """Counts choices in the model's training forwards from now on; `read` gives what came since the last reading.

        load = ExpertLoad(model)
        ...                                   # any number of steps
        log(scalars(load.read()))

    Several readers do not disturb each other. In several processes each reads its own tokens. Layers without a router are left
    out. Raises UsageError for a model without MoE layers that have one.
    """

    def __init__(self, model: nn.Module) -> None:
        self._name = f"load {id(self)}"
        model = getattr(model, "_orig_mod", model)
        self._layers = {path: layer for path, layer in moe_layers(model).items() if layer.router is not None}
        if not self._layers:
            raise UsageError(f"{type(model).__name__} has no MoE layers with a router: there is no load to count")
        for path, layer in self._layers.items():
            if layer.training_state is None:
                enter(model, path, layer, TrainingState(TrainingRule()))
            assert layer.training_state is not None
            layer.training_state.tally = layer.training_state.tally or Tally()
        self.read()

    def read(self) -> dict[str, LayerReading]:
        """By the paths of the layers that ran."""
        found = {}
        for path, layer in self._layers.items():
            tally = layer.training_state and layer.training_state.tally
            if tally and (count := tally.take(self._name)) is not None and count.sums[-3] > 0:
                found[path] = _layer_reading(count)
        return found


def scalars(loads: Mapping[str, LayerReading], prefix: str = "moe/") -> dict[str, float]:
    """What a dashboard takes: of each layer max_share and min_share (of all choices; 1 / experts is even), dead (how many),
    entropy and dropped, named prefix, path, "/" and these; and prefix with "dead", the sum over layers.
    """
    found: dict[str, float] = {}
    for path, load in loads.items():
        total = sum(load.shares) or 1.0
        values = {"max_share": max(load.shares) / total, "min_share": min(load.shares) / total}
        values |= {"dead": float(len(load.dead)), "entropy": load.entropy, "dropped": load.dropped}
        found |= {f"{prefix}{path}/{name}": value for name, value in values.items()}
    return found | {f"{prefix}dead": float(sum(len(load.dead) for load in loads.values()))}


def _layer_reading(count: Count) -> LayerReading:
    *chosen, tokens, entropy, dropped = count.sums.tolist()
    dead = tuple(e for e, choices in enumerate(chosen) if not choices)
    shares = tuple(choices / tokens for choices in chosen)
    return LayerReading(round(tokens), shares, dead, entropy / tokens, dropped / (sum(chosen) or 1.0))
