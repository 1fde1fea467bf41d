"""Which null models fit a conversion, and why the others do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from moeify.ir.model_graph import Batch
from moeify.layers.moe_layer import MoELayer
from moeify.measure.nulls import Null, all_on, choosing, oracle, random_partition
from moeify.measure.static_mask import static_mask


def null_models(
    model: nn.Module,
    layers: Mapping[str, MoELayer],
    leading: Iterable[Batch],
    neurons: Mapping[str, int],
    seed: int,
    notes: list[str],
) -> tuple[Null, ...]:
    """All nulls that mean something for these layers; the reasons for the others are added to `notes`.

    leading: batches that choose the static mask. neurons: of the dense FFN by path, if not what the layer's config says.
    """
    routed = choosing(layers)
    if not routed:
        notes.append("no null models: no layer chooses among its experts")
        return ()
    nulls = [all_on(layers), oracle(layers)]
    if any(neurons.get(path, layer.config.dense_neurons) != layer.config.rows for path, layer in routed.items()):
        notes.append("no random partition and no static mask: the experts of some layers overlap, or leave neurons out")
        return tuple(nulls)
    nulls.append(random_partition(layers, seed))
    if any(layer.config.gate_rule != "one" or layer.config.normalize for layer in routed.values()):
        notes.append("no static mask: the gates of some layers scale their experts, so rows cannot simply stay on")
        return tuple(nulls)
    return (*nulls, static_mask(model, layers, leading))
