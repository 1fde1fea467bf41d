"""A finished MoE layer into an eager model. The user's class stays (docs/decisions/0001-four-ways-of-rewriting.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from moeify.errors import InputError
from moeify.ir.feed_forward import Rewrite
from moeify.ir.weight_place import WeightPlace
from moeify.layers.channels import OverChannels
from moeify.layers.inference import listen
from moeify.layers.moe_layer import MoELayer
from moeify.splice.stand_in import StandIn, Stash, StashedLayer, StashInput
from moeify.splice.way_back import remember, replace_module


def install(
    model: nn.Module, rewrite: Rewrite, layer: MoELayer, path: str = "", places: Mapping[str, WeightPlace] | None = None
) -> None:
    """Puts the layer where the rewrite says, in place; the dense weights are let go.

    path, places: of the site and of its weights, by role, for the way back (`moeify.splice.way_back`); None: there is none.
    Raises InputError where the model has no such module or parameter.
    """
    try:
        layer.origin = None if places is None else remember(model, path, rewrite, places)
        _WAYS[rewrite.way](model, rewrite.modules, OverChannels(layer) if rewrite.channels else layer)
    except (AttributeError, KeyError) as error:
        raise InputError(f"the model has no place for the MoE layer at {dict(rewrite.modules)}: {error}") from error
    listen(model, layer)


def _submodule(model: nn.Module, modules: Mapping[str, str], layer: nn.Module) -> None:
    replace_module(model, modules["ffn"], layer)


def _identity(model: nn.Module, modules: Mapping[str, str], layer: nn.Module) -> None:
    for role in ("up", "activation"):
        if role in modules:
            replace_module(model, modules[role], nn.Identity())
    replace_module(model, modules["down"], layer)


def _stash(model: nn.Module, modules: Mapping[str, str], layer: nn.Module) -> None:
    stash = Stash(axis=1 if isinstance(layer, OverChannels) else -1)
    for path in dict.fromkeys(modules[role] for role in ("gate", "up") if role in modules):
        replace_module(model, path, StashInput(stash, _width(model.get_submodule(path))))
    replace_module(model, modules["down"], StashedLayer(stash, layer))
    owner = model.get_submodule(modules["down"].rpartition(".")[0])
    if isinstance(owner, nn.TransformerEncoderLayer):
        owner.activation_relu_or_gelu = 0  # else eval mode takes a fused path that reads linear1.weight


def _weights(model: nn.Module, modules: Mapping[str, str], layer: nn.Module) -> None:
    owner = model.get_submodule(modules["owner"])
    stash = Stash()
    roles = {name: role for role, name in modules.items() if role != "owner"}  # a fused matrix has two
    for name, role in roles.items():
        holder, _, leaf = name.rpartition(".")
        place = owner.get_submodule(holder)
        shape = cast(Tensor, getattr(place, leaf)).shape
        delattr(place, leaf)
        kind = "bias" if role.endswith("bias") else "out" if role == "down" else "in"
        # Past nn.Module's own __setattr__, and so past its register: the stand-in is no parameter.
        place.__dict__[leaf] = StandIn(cast(Any, kind), stash, shape, layer if kind == "out" else None)
    owner.add_module(_free_name(owner, "moe"), layer)


_WAYS = {"submodule": _submodule, "identity": _identity, "stash": _stash, "weights": _weights}


def _width(module: nn.Module) -> int:
    """The output width of a linear module: nn.Linear's out_features, Conv1D's nf, nn.Conv1d's out_channels, else by its
    weight and bias."""
    for name in ("out_features", "nf", "out_channels"):
        if isinstance(width := getattr(module, name, None), int):
            return width
    bias = getattr(module, "bias", None)
    return len(bias) if isinstance(bias, Tensor) else len(cast(Tensor, module.weight))


def _free_name(owner: nn.Module, name: str) -> str:
    return name if not hasattr(owner, name) else _free_name(owner, name + "_")
