"""How far dense FFNs that were gathered from experts are from the MoE layers that they are to replace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from moeify.ir.model_graph import Batch
from moeify.layers.dense_ffn import DenseWeights
from moeify.layers.dense_ffn.mean import copies_of
from moeify.layers.experts import LayerWeights, run_all
from moeify.layers.moe_layer import MoELayer
from moeify.layers.rows import Rows
from moeify.measure.divergence import Divergence, DivergenceSum
from moeify.measure.outputs import evaluating, main_output, run, visible, visible_outputs
from moeify.measure.substitute import Compute, computed_by


def weight_distance(layer: MoELayer, dense: DenseWeights) -> float:
    """sqrt(mean over the copies of ||W_c - W||^2) / sqrt(mean of ||W_c||^2), all matrices and biases of a copy together.

    0 for a layer whose experts are no copies: concatenated they are what they were.
    """
    if layer.config.shards is None:
        return 0.0
    apart = size = 0.0
    for share, copy in copies_of(layer):
        apart += share * sum(
            float((value - dense[name].to(value.dtype)).double().square().sum()) for name, value in copy.items()
        )
        size += share * sum(float(value.double().square().sum()) for value in copy.values())
    return math.sqrt(apart / size) if size else 0.0


def output_distances(
    model: nn.Module, layers: Mapping[str, MoELayer], dense: Mapping[str, DenseWeights], batches: Iterable[Batch]
) -> tuple[dict[str, float], Divergence]:
    """(||dense FFN - layer|| / ||layer|| on the layer's own inputs, by path; the whole models' outputs compared).

    Padding is left out where the batch marks it. Raises InputError where the model fails or there is no batch.
    """
    functions = {path: dense_function(layers[path], weights) for path, weights in dense.items()}
    sums: dict[str, tuple[float, float]] = {}
    total = DivergenceSum()
    with evaluating(model):
        for batch in batches:
            with _compared({path: layers[path] for path in dense}, functions, sums, visible(batch)):
                name, before = main_output(run(model, batch))
            with computed_by(layers, functions):
                after = main_output(run(model, batch))[1]
            total.add(before, after, name, visible_outputs(batch))
    return {path: math.sqrt(apart / size) if size else 0.0 for path, (apart, size) in sums.items()}, total.result()


def dense_function(layer: MoELayer, weights: DenseWeights) -> Compute:
    """y [tokens, output] of the layer's place and x [tokens, hidden], by the dense FFN of those weights."""
    w = weights
    rows = Rows(w["up"], w["down"], w.get("gate"), w.get("up_bias"), w.get("gate_bias"))
    gathered = LayerWeights(rows, (0, len(rows.up)), layer.config.activation, w.get("output_bias"))
    return lambda _, x: run_all(x, gathered, None)


@contextmanager
def _compared(
    layers: Mapping[str, MoELayer],
    functions: Mapping[str, Compute],
    sums: dict[str, tuple[float, float]],
    shown: Tensor | None,
) -> Iterator[None]:
    """Within the block every call of a layer adds to its sums: the squares of the difference and of its own output."""

    def hook(path: str) -> Callable[..., Any]:
        def after(layer: MoELayer, args: tuple[Tensor, ...], y: Tensor) -> None:
            x, y = args[0].reshape(-1, args[0].shape[-1]), y.reshape(-1, y.shape[-1])
            if shown is not None and shown.numel() == len(x):
                kept = shown.flatten().to(x.device)
                x, y = x[kept], y[kept]
            apart, size = sums.get(path, (0.0, 0.0))
            sums[path] = (apart + _squares(functions[path](layer, x).float() - y.float()), size + _squares(y))

        return after

    handles = [layer.register_forward_hook(hook(path)) for path, layer in layers.items()]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _squares(value: Tensor) -> float:
    return float(value.double().square().sum())
