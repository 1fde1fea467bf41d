"""One pass over data for what can be shown of routing: loads, experts chosen together, neurons that fire together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from moeify.errors import InputError
from moeify.ir.model_graph import Batch
from moeify.layers.moe_layer import MoELayer
from moeify.measure.co_activation import CoActivation, co_activation, dense_order
from moeify.measure.dense_ffn import DenseFFN
from moeify.measure.even_sample import EvenSample
from moeify.measure.load import LayerLoad, LoadMeter, metered
from moeify.measure.outputs import evaluating, run, visible

#: Tokens of a layer whose neurons are looked at.
SAMPLE = 1024

#: Up to so many experts are shown as pairs.
PAIRS = 64


@dataclass(frozen=True)
class LayerTogether:
    """neurons: in the order of the experts, the shared one first; before: in that of the dense FFN, for groups of the same
    sizes. experts: [experts][experts], the share of tokens on which both run. What does not apply is None, and `reason` says
    why there are no neurons, `reason_before` why there are none before."""

    path: str
    tokens: int
    neurons: CoActivation | None
    before: CoActivation | None
    experts: tuple[tuple[float, ...], ...] | None
    reason: str = ""
    reason_before: str = ""


@dataclass(frozen=True)
class RoutingFacts:
    """loads: of every layer that ran, by the path of its dense FFN. together: of the layers that were asked for."""

    loads: tuple[LayerLoad, ...]
    together: tuple[LayerTogether, ...]


@dataclass(eq=False)
class _Pairs(LoadMeter):
    """Counts pairs of experts too."""

    pairs: dict[str, Tensor] = field(default_factory=dict)

    def count(self, path: str, chosen: Tensor) -> None:
        super().count(path, chosen)
        if 1 < chosen.shape[1] <= PAIRS:
            on = (chosen if (kept := self.kept(chosen)) is None else chosen[kept]).double()
            self.pairs[path] = self.pairs.get(path, 0) + (on.T @ on).cpu()


def routing_facts(
    model: nn.Module,
    layers: Mapping[str, MoELayer],
    batches: Iterable[Batch],
    shown: Collection[str],
    ffns: Mapping[str, DenseFFN],
    progress: Callable[[int], None] = lambda done: None,
) -> RoutingFacts:
    """Runs the converted model on the batches once. layers: its MoE layers by the path of the dense FFN. shown: paths of layers
    whose neurons are looked at. ffns: dense FFNs by path. progress: receives the number of batches done. Raises InputError
    where the model fails or there is no batch."""
    meter, samples = _Pairs(), {path: EvenSample(SAMPLE) for path in layers if path in shown}
    done = 0
    with evaluating(model), metered(layers, meter), _sampled(layers, samples, meter):
        for batch in batches:
            meter.shown = visible(batch)
            run(model, batch)
            done += 1
            progress(done)
        if not done:
            raise InputError("the data holds no batch to look at")
        together = tuple(
            _together(path, layers[path], sample.rows(), meter, ffns.get(path)) for path, sample in samples.items()
        )
    return RoutingFacts(meter.results(layers), together)


@contextmanager
def _sampled(layers: Mapping[str, MoELayer], samples: Mapping[str, EvenSample], meter: LoadMeter) -> Iterator[None]:
    """Within the block the samples get inputs of their layers."""

    def hook(sample: EvenSample) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def before(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].reshape(-1, args[0].shape[-1])
            kept = meter.kept(x)
            sample.add(x if kept is None else x[kept])

        return before

    handles = [layers[path].register_forward_pre_hook(hook(sample)) for path, sample in samples.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _together(path: str, layer: MoELayer, x: Tensor, meter: _Pairs, dense: DenseFFN | None) -> LayerTogether:
    pairs = meter.pairs.get(path) if layer.config.top_k != 1 else None
    experts = None if pairs is None else tuple(map(tuple, (pairs / meter.tokens[path]).tolist()))
    if (reason := _no_neurons(layer, len(x))) is not None:
        return LayerTogether(path, len(x), None, None, experts, reason)
    ffn, sizes = DenseFFN.of_layer(layer), layer.config.sizes
    groups = (layer.config.shared, *sizes) if layer.config.shared else sizes
    h = ffn.hidden(x.to(ffn.rows.up))
    order = None if dense is None else dense_order(dense.rows.up, ffn.rows.up)
    before = None if order is None else co_activation(h[:, order.argsort().to(h.device)].cpu(), groups)
    why = "the dense model was not given" if dense is None else "its rows are not those of the dense model"
    return LayerTogether(path, len(x), co_activation(h.cpu(), groups), before, experts, "", why if before is None else "")


def _no_neurons(layer: MoELayer, tokens: int) -> str | None:
    """Why the order of the neurons says nothing; None where it does."""
    config = layer.config
    if config.shards is not None or config.composed is not None or config.rows != config.dense_neurons:
        return "its experts are no partition of the dense FFN's neurons"
    if max(config.sizes) == 1:
        return "every expert is one neuron"
    if config.experts + bool(config.shared) == 1:
        return "it has one group of neurons"
    return "no token reached it" if tokens < 2 else None
