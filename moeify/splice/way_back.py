"""The way back from an MoE layer to the dense FFN that stood there."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from moeify.errors import ConversionError
from moeify.frontend.traced import live_tensor
from moeify.ir.feed_forward import Rewrite
from moeify.ir.weight_place import WeightPlace
from moeify.layers.moe_layer import MoELayer
from moeify.layers.origin import BareTensor, Origin

_REGISTERS = ("_parameters", "_buffers", "__dict__")


def remember(model: nn.Module, path: str, rewrite: Rewrite, places: Mapping[str, WeightPlace]) -> Origin:
    """What stands where the rewrite is about to put an MoE layer; dense weights are not kept alive by it."""
    weights = {name: live_tensor(model, name) for name in dict.fromkeys(place.parameter for place in places.values())}
    ids = {id(tensor) for tensor in weights.values() if tensor is not None}
    trouble = _unfit(weights, places)
    if rewrite.way == "weights":
        owner = rewrite.modules["owner"]
        names = (f"{owner}.{name}".lstrip(".") for role, name in rewrite.modules.items() if role != "owner")
        return Origin(path, rewrite, places, tensors={name: _taken_out(model, name) for name in names}, trouble=trouble)
    replaced = {name: model.get_submodule(name) for name in rewrite.modules.values()}
    lost = [f"{name}.{leaf}" for name, m in replaced.items() for leaf, t in _tensors(m) if t.is_meta and id(t) not in ids]
    if lost:
        trouble = f"{', '.join(lost)} of the dense network is in no file of the folder"
    twins = {name: _emptied(module, ids) for name, module in replaced.items()}
    return Origin(path, rewrite, places, twins, fast_path=_fast_path(model, rewrite), trouble=trouble)


def restore(model: nn.Module, layer: MoELayer, weights: Mapping[str, Tensor]) -> None:
    """Puts the dense FFN back with those weights, neuron-major by role; the layer is let go.

    weights: of the shapes in `layer.origin.places`. The FFN gets their dtype and device, and the layer's training mode.
    """
    origin = cast(Origin, layer.origin)
    if origin.rewrite.way == "weights":
        _put_back_tensors(model, layer, origin)
    for path, module in origin.modules.items():
        replace_module(model, path, module.train(layer.training))
    if origin.fast_path is not None:
        owner, flag = origin.fast_path
        cast(Any, model.get_submodule(owner)).activation_relu_or_gelu = flag
    _fill(model, origin.places, weights)


def check_way_back(path: str, layer: MoELayer) -> Origin:
    """The layer's origin. Raises ConversionError where the dense FFN cannot be put back."""
    trouble = "the layer does not say what it was made of" if layer.origin is None else layer.origin.trouble
    if layer.origin is None or trouble is not None:
        raise ConversionError(f"{path}: there is no way back to a dense network: {trouble}; convert the dense model again")
    return layer.origin


def _unfit(weights: Mapping[str, Tensor | None], places: Mapping[str, WeightPlace]) -> str | None:
    """Why weights cannot be written to those places; None where they can."""
    held: dict[str, int] = {}
    for role, place in places.items():
        tensor = weights[place.parameter]
        if tensor is None or tensor.ndim < len(place.shape) or place.view(tensor).shape != place.shape:
            return f"{place.parameter} is not there in the shape that its {role} has"
        held[place.parameter] = held.get(place.parameter, 0) + math.prod(place.shape)
    parts = [name for name, tensor in weights.items() if tensor is not None and tensor.numel() != held[name]]
    return f"{parts[0]} holds more than the network's weights" if parts else None


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _emptied(module: nn.Module, weights: set[int], done: dict[int, nn.Module] | None = None) -> nn.Module:
    """A module of the same class with the same contents, but for the tensors of those ids: they are on the meta device.

    Not a deep copy: configs, hooks and whatever else the module shares with the rest of the model stay shared.
    """
    done = {} if done is None else done
    if id(module) not in done:
        twin = done[id(module)] = copy.copy(module)
        for register in ("_parameters", "_buffers"):
            held = getattr(module, register).items()
            vars(twin)[register] = {name: _on_meta(value) if id(value) in weights else value for name, value in held}
        bare = {name: value for name, value in vars(module).items() if isinstance(value, Tensor) and id(value) in weights}
        vars(twin).update({name: _on_meta(value) for name, value in bare.items()})
        children = module._modules.items()
        vars(twin)["_modules"] = {n: None if c is None else _emptied(c, weights, done) for n, c in children}
    return done[id(module)]


def _on_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _fast_path(model: nn.Module, rewrite: Rewrite) -> tuple[str, int] | None:
    if rewrite.way != "stash":
        return None
    owner = rewrite.modules["down"].rpartition(".")[0]
    module = model.get_submodule(owner)
    return (owner, module.activation_relu_or_gelu) if isinstance(module, nn.TransformerEncoderLayer) else None


def _taken_out(model: nn.Module, name: str) -> BareTensor:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    register = next(register for register in _REGISTERS if leaf in getattr(module, register))
    held = getattr(module, register)
    return BareTensor(_on_meta(held[leaf]), register, tuple(held))


def _put_back_tensors(model: nn.Module, layer: MoELayer, origin: Origin) -> None:
    owner = model.get_submodule(origin.rewrite.modules["owner"])
    for name in [name for name, child in owner.named_children() if child is layer]:
        delattr(owner, name)
    for name, bare in origin.tensors.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        vars(module).pop(leaf)  # the stand-in
        held = getattr(module, bare.register)
        held[leaf] = bare.tensor
        if bare.register != "__dict__":
            order = [known for known in bare.before if known in held] + [other for other in held if other not in bare.before]
            vars(module)[bare.register] = {known: held[known] for known in order}


def _fill(model: nn.Module, places: Mapping[str, WeightPlace], weights: Mapping[str, Tensor]) -> None:
    made: dict[str, Tensor] = {}
    with torch.no_grad():
        for role, place in places.items():
            if place.parameter not in made:
                shape = cast(Tensor, live_tensor(model, place.parameter)).shape
                made[place.parameter] = torch.empty(shape, dtype=weights[role].dtype, device=weights[role].device)
            place.view(made[place.parameter]).copy_(weights[role])
    for name, value in made.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        held = next(held for register in _REGISTERS if leaf in (held := getattr(module, register)))
        old = held[leaf]
        held[leaf] = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value


def replace_module(model: nn.Module, path: str, new: nn.Module) -> None:
    """Everywhere that the module at that path is registered: models register one object under several names."""
    old = model.get_submodule(path)
    for name in [name for name, module in model.named_modules(remove_duplicate=False) if module is old]:
        model.set_submodule(name, new)
