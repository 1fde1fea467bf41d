"""The activations of `moeify.ir.activations` in standard ONNX operators (opset 20)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from moeify.export.onnx.operations import Operations

if TYPE_CHECKING:
    import onnx_ir as ir

    Activation = Callable[[Operations, ir.Value], ir.Value]


def _single(name: str, **attributes: Any) -> Activation:
    return lambda op, x: op(name, x, **attributes)


def _squared(name: str, **attributes: Any) -> Activation:
    def build(op: Operations, x: ir.Value) -> ir.Value:
        h = op(name, x, **attributes)
        return op("Mul", h, h)

    return build


def _relu6(op: Operations, x: ir.Value) -> ir.Value:
    return op("Clip", x, op.constant(0.0), op.constant(6.0))


def _silu(op: Operations, x: ir.Value) -> ir.Value:
    return op("Mul", x, op("Sigmoid", x))


def _quick_gelu(op: Operations, x: ir.Value) -> ir.Value:
    return op("Mul", x, op("Sigmoid", op("Mul", x, op.constant(1.702))))


_SIXTH = 1 / 6

BODY_ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "identity": lambda op, x: x,
        "relu": _single("Relu"),
        "relu6": _relu6,
        "relu-squared": _squared("Relu"),
        "leaky-relu": _single("LeakyRelu", alpha=0.01),
        "leaky-relu-0.1": _single("LeakyRelu", alpha=0.1),
        "leaky-relu-0.5-squared": _squared("LeakyRelu", alpha=0.5),
        "gelu": _single("Gelu", approximate="none"),
        "gelu-tanh": _single("Gelu", approximate="tanh"),
        "quick-gelu": _quick_gelu,
        "silu": _silu,
        "mish": _single("Mish"),
        "elu": _single("Elu", alpha=1.0),
        "selu": _single("Selu"),
        "softplus": _single("Softplus"),
        "softsign": _single("Softsign"),
        "tanh": _single("Tanh"),
        "sigmoid": _single("Sigmoid"),
        "hard-sigmoid": _single("HardSigmoid", alpha=_SIXTH, beta=0.5),
        "hard-swish": _single("HardSwish"),
    }
)
