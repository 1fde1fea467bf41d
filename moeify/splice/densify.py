"""All MoE layers of a model dense again: checked, gathered, put back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from moeify.errors import ConversionError, UsageError
from moeify.ir.moe_config import MoEConfig
from moeify.ir.weight_place import WeightPlace
from moeify.layers.budget import moe_layers
from moeify.layers.dense_ffn import DenseWeights, Gathering
from moeify.layers.model_hooks import forget_watcher
from moeify.layers.moe_layer import MoELayer
from moeify.layers.token_input import TokenInput
from moeify.splice.way_back import check_way_back, restore


def check_gathering(path: str, config: MoEConfig, places: Mapping[str, WeightPlace], strategy: Gathering) -> None:
    """Raises UsageError, with the layer's name, where its experts cannot become the dense FFN that stood at those places."""
    try:
        strategy.check(config, places["up"].shape[0])
    except UsageError as error:
        raise UsageError(f"{path}: cannot be made dense by {strategy.name}: {error}") from error


def dense_weights(model: nn.Module, strategy: Gathering) -> dict[str, DenseWeights]:
    """The weights of each layer's dense FFN, by the layer's path; nothing is changed.

    Raises UsageError for a model without MoE layers and for a layer that does not fit the strategy, ConversionError for one
    that does not know where it came from.
    """
    layers = moe_layers(model)
    if not layers:
        raise UsageError(f"{type(model).__name__} has no MoE layers: it is dense already")
    for path, layer in layers.items():
        check_gathering(path, layer.config, check_way_back(path, layer).places, strategy)
    return {path: _fitting(path, layer, strategy.gather(layer)) for path, layer in layers.items()}


def put_back(model: nn.Module, weights: dict[str, DenseWeights]) -> None:
    """Puts dense FFNs with those weights in the place of all MoE layers; layers and weights are let go one after the other."""
    for path in list(weights):
        layer = model.get_submodule(path)
        assert isinstance(layer, MoELayer)
        restore(model, layer, weights.pop(path))
    forget_watcher(model, TokenInput)


def _fitting(path: str, layer: MoELayer, weights: DenseWeights) -> DenseWeights:
    """The weights. Raises ConversionError where the dense network has no place for one of them, or a place for another."""
    places = check_way_back(path, layer).places
    if weights.keys() != places.keys():
        other = ", ".join(sorted(weights.keys() ^ places.keys()))
        raise ConversionError(f"{path}: {other} is not in both the MoE layer and the dense network that it was made of")
    for role, place in places.items():
        if weights[role].shape != place.shape:
            shapes = f"{list(weights[role].shape)}, its place in the dense network {list(place.shape)}"
            raise ConversionError(f"{path}: {role} has the shape {shapes}")
    return weights
