"""The closed table of pointwise activations: one name, one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from moeify.errors import UsageError, did_you_mean


def _identity(x: Tensor) -> Tensor:
    return x


def _relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _leaky_relu_wide(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1)


def _leaky_relu_squared(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.5).square()


#: Name -> pointwise function of one tensor of any shape.
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "identity": _identity,
        "relu": F.relu,
        "relu6": F.relu6,
        "relu-squared": _relu_squared,
        "leaky-relu": F.leaky_relu,
        "leaky-relu-0.1": _leaky_relu_wide,
        "leaky-relu-0.5-squared": _leaky_relu_squared,
        "gelu": F.gelu,
        "gelu-tanh": _gelu_tanh,
        "quick-gelu": _quick_gelu,
        "silu": F.silu,
        "mish": F.mish,
        "elu": F.elu,
        "selu": F.selu,
        "softplus": F.softplus,
        "softsign": F.softsign,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "hard-sigmoid": F.hardsigmoid,
        "hard-swish": F.hardswish,
    }
)


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function of that name. Raises UsageError for a name that is not in the table."""
    if name not in ACTIVATIONS:
        raise UsageError(f"unknown activation {name!r}: {did_you_mean(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]
