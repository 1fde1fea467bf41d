"""What the routers do on the data: which experts run, how many, and how many weights that takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moeify.ir.model_graph import Batch
from moeify.ir.moe_config import MoEConfig
from moeify.layers.budget import moe_layers
from moeify.layers.moe_layer import MoELayer
from moeify.measure.outputs import evaluating, run, visible


@dataclass(frozen=True)
class LayerLoad:
    """One MoE layer on the data.

    loads: the share of tokens that each expert runs on; they sum to mean_on. fewest_on, most_on: over tokens.
    active_fraction: weights used by a token / weights of the dense FFN: rows of the shared and the chosen experts, router,
    low-rank term (docs/moe-layer.md), as measured. entropy: of the choices over the experts, divided by log(experts); 1 is
    perfect balance (1 for a single expert). dead: experts that no token chose.
    """

    path: str
    tokens: int
    experts: int
    loads: tuple[float, ...]
    mean_on: float
    fewest_on: int
    most_on: int
    active_fraction: float
    entropy: float
    dead: tuple[int, ...]
    dense_weights: int


@dataclass
class LoadMeter:
    """Counts choices while a model runs. shown: tokens of the coming batch to count, [rows, tokens] bool; None: all."""

    counts: dict[str, Tensor] = field(default_factory=dict)
    on: dict[str, tuple[int, int]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    shown: Tensor | None = None

    def count(self, path: str, chosen: Tensor) -> None:
        """chosen: bool [tokens, experts]."""
        if (kept := self.kept(chosen)) is not None:
            chosen = chosen[kept]
        if not len(chosen):
            return
        fewest, most = (int(value) for value in chosen.sum(-1).aminmax())
        low, high = self.on.get(path, (fewest, most))
        self.on[path] = (min(low, fewest), max(high, most))
        self.counts[path] = self.counts.get(path, 0) + chosen.sum(0).cpu()
        self.tokens[path] = self.tokens.get(path, 0) + len(chosen)

    def kept(self, rows: Tensor) -> Tensor | None:
        """Which of the rows [tokens, ...] are counted, [tokens] bool; None: all."""
        if self.shown is None or self.shown.numel() != len(rows):
            return None
        return self.shown.flatten().to(rows.device)

    def results(self, layers: Mapping[str, MoELayer], neurons: Mapping[str, int] | None = None) -> tuple[LayerLoad, ...]:
        """The layers that ran. neurons: of the dense FFN by path; what the layer's config says where it says nothing."""
        sizes = neurons or {}
        return tuple(
            _layer_load(path, layer, count, self.tokens[path], self.on[path], sizes.get(path, layer.config.dense_neurons))
            for path, layer in layers.items()
            if (count := self.counts.get(path)) is not None
        )


@contextmanager
def metered(layers: Mapping[str, MoELayer], meter: LoadMeter) -> Iterator[None]:
    """Within the block every call of a layer is counted (its router runs once more)."""

    def hook(path: str) -> Any:
        def before(layer: MoELayer, args: tuple[Tensor, ...]) -> None:
            meter.count(path, layer.route(args[0]).chosen)

        return before

    handles = [layer.register_forward_pre_hook(hook(path)) for path, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def expert_load(model: nn.Module, batches: Iterable[Batch], neurons: Mapping[str, int] | None = None) -> tuple[LayerLoad, ...]:
    """The load of every MoE layer that runs on the batches. Raises InputError where the model fails."""
    layers, meter = moe_layers(model), LoadMeter()
    with evaluating(model), metered(layers, meter):
        for batch in batches:
            meter.shown = visible(batch)
            run(model, batch)
    return meter.results(layers, neurons)


def whole_active_fraction(loads: Iterable[LayerLoad]) -> float | None:
    """Weights used by a token / weights of the dense FFNs, both summed over the layers; None without layers."""
    loads = tuple(loads)
    dense = sum(load.dense_weights for load in loads)
    return sum(load.active_fraction * load.dense_weights for load in loads) / dense if loads else None


def fraction_used(config: MoEConfig, loads: Tensor, neurons: int) -> float:
    """The active fraction of a layer whose experts run on these shares of the tokens, float64 [experts]; against a dense FFN of
    that many neurons."""
    rows = float((loads * torch.tensor(config.sizes, dtype=torch.float64)).sum())
    equal = rows * config.experts / (config.rows - config.shared)  # experts of mean size that hold as many rows
    return config.active_fraction(neurons, equal)


def _layer_load(path: str, layer: MoELayer, counts: Tensor, tokens: int, on: tuple[int, int], neurons: int) -> LayerLoad:
    config = layer.config
    loads = counts.double() / tokens
    choices = loads / loads.sum() if bool(counts.any()) else torch.zeros_like(loads)
    entropy = -float(torch.special.xlogy(choices, choices).sum())
    return LayerLoad(
        path=path,
        tokens=tokens,
        experts=config.experts,
        loads=tuple(loads.tolist()),
        mean_on=float(loads.sum()),
        fewest_on=on[0],
        most_on=on[1],
        active_fraction=fraction_used(config, loads, neurons),
        entropy=entropy / math.log(config.experts) if config.experts > 1 else 1.0,
        dead=tuple((counts == 0).nonzero().flatten().tolist()),
        dense_weights=neurons * (config.hidden * (2 if config.gated else 1) + config.output),
    )
