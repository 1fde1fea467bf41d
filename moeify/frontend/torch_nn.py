"""What of torch.nn a pickle may name: a closed list of module classes and of functions from tensors to tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

#: Activations that torch.nn's own layers keep as an attribute (nn.TransformerEncoderLayer). They take and give tensors.
_ACTIVATIONS = (
    "celu", "elu", "gelu", "glu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid", "mish", "relu", "relu6",
    "rrelu", "selu", "sigmoid", "silu", "softplus", "softsign", "tanh", "tanhshrink",
)  # fmt: skip


@cache
def module_classes() -> Mapping[str, type[nn.Module]]:
    """Name in a pickle -> class, for every module class that is defined in torch.nn.modules.

    Lazy modules are left out: their state holds hooks, and they have no weights yet.
    """
    found = (
        cls
        for name, module in sorted(sys.modules.items())
        if name.startswith("torch.nn.modules.")
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__ == name
    )
    return {_name(cls): cls for cls in found if not issubclass(cls, LazyModuleMixin)}


@cache
def functions() -> Mapping[str, Callable[..., Any]]:
    """Name in a pickle -> function."""
    return {_name(function): function for function in (getattr(nn.functional, name) for name in _ACTIVATIONS)}


def only_torch_nn(model: nn.Module) -> bool:
    """Every module of the model is of a class on the list, not of one derived from it."""
    known = set(module_classes().values())
    return all(type(module) in known for module in model.modules())


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
