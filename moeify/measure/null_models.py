"""Which null models fit a conversion, fitted on data, and why the others do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from moeify.ir.model_graph import Batch
from moeify.layers.moe_layer import MoELayer
from moeify.measure.dense_ffn import DenseFFN
from moeify.measure.even_sample import EvenSample
from moeify.measure.fitted_nulls import FittedNulls, fit_nulls, generator_of
from moeify.measure.load import LoadMeter, metered
from moeify.measure.nulls import Null, all_on, choosing, full_rank_compensation, oracle, random_partition, static_mask
from moeify.measure.outputs import evaluating, run, visible
from moeify.measure.substitute import Compute, computed_by

#: Tokens that the nulls of a layer are fitted on at most.
FITTED = 2048


def null_models(
    model: nn.Module,
    layers: Mapping[str, MoELayer],
    leading: Iterable[Batch],
    dense: Mapping[str, DenseFFN],
    seed: int,
    notes: list[str],
) -> tuple[Null, ...]:
    """All nulls that mean something for these layers; the reasons for the others are added to `notes`.

    leading: batches to fit nulls on. dense: the FFNs before the conversion, by path; of layers that are not in it, their own
    rows are taken for those. Raises InputError where the model fails.
    """
    reduced = choosing(layers) | {
        path: layer for path, layer in layers.items() if layer.config.rows < layer.config.dense_neurons
    }
    if not reduced:
        notes.append("no null models: every layer runs all of its experts")
        return ()
    nulls = (all_on(layers), oracle(layers, dense)) if choosing(layers) else ()
    if any(layer.config.shards is not None for layer in reduced.values()):
        notes.append("no static mask, random partition and compensation: the experts are copies of the FFN, not parts of it")
        return nulls
    foreign = {path: layer for path, layer in reduced.items() if path not in dense}
    if any(not _parts(layer) for layer in foreign.values()):
        notes.append(
            "no static mask, random partition and compensation: the experts overlap, leave neurons out or are scaled, so that "
            "their rows are not the dense FFN's; give the dense model (--dense)"
        )
        return nulls
    if foreign:
        notes.append(
            f"no dense model was given that has the FFN of {next(iter(foreign))}: null models are made of the converted "
            "layers' own rows"
        )
    ffns = {path: dense.get(path) or DenseFFN.of_layer(layer) for path, layer in reduced.items()}
    fitted = _fit(model, reduced, leading, ffns, seed)
    return (*nulls, random_partition(ffns, fitted), static_mask(ffns, fitted), full_rank_compensation(fitted))


def _parts(layer: MoELayer) -> bool:
    """May the layer's rows be those of the dense FFN, as far as its shape tells?"""
    config = layer.config
    return config.rows == config.dense_neurons and config.gate_rule == "one" and not config.normalize


def _fit(
    model: nn.Module, layers: Mapping[str, MoELayer], batches: Iterable[Batch], ffns: Mapping[str, DenseFFN], seed: int
) -> dict[str, FittedNulls]:
    """By path; on inputs as the dense model gives them, at the active fractions that the layers have on the batches."""
    meter = LoadMeter()
    seen = {path: _Inputs(ffn) for path, ffn in ffns.items()}
    with evaluating(model):
        for batch in batches:
            meter.shown = visible(batch)
            with metered(layers, meter):
                run(model, batch)
            for inputs in seen.values():
                inputs.shown = meter.shown
            with computed_by(layers, {path: inputs.compute for path, inputs in seen.items()}):
                run(model, batch)
        loads = {load.path: load for load in meter.results(layers, {path: ffn.neurons for path, ffn in ffns.items()})}
        return {
            path: fit_nulls(
                ffns[path], layers[path].config, seen[path].sample.rows(), load.active_fraction, _built(layers[path]),
                generator_of(seed, path),
            )
            for path, load in loads.items()
        }  # fmt: skip


def _built(layer: MoELayer) -> Callable[[Tensor, Tensor], Tensor]:
    def compute(x: Tensor, h: Tensor) -> Tensor:
        y: Tensor = layer(x)
        return y

    return compute


@dataclass
class _Inputs:
    """Computes the dense FFN and keeps some of its inputs. shown: as in LoadMeter."""

    ffn: DenseFFN
    sample: EvenSample = field(default_factory=lambda: EvenSample(FITTED))
    shown: Tensor | None = None

    @property
    def compute(self) -> Compute:
        def dense(layer: MoELayer, x: Tensor) -> Tensor:
            hidden = self.shown is not None and self.shown.numel() == len(x)
            self.sample.add(x[torch.flatten(self.shown).to(x.device)] if hidden and self.shown is not None else x)
            return self.ffn.output(self.ffn.hidden(x))

        return dense
