"""How far a model's outputs move when each of its MoE layers is off by as much as rounding makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moeify.export.onnx.distance import furthest
from moeify.layers.moe_layer import MoELayer

Array = NDArray[Any]

#: The error of a layer's output, relative to the root of its mean square, that rounding may cause.
NOISE = {"float32": 5e-7, "float16": 5e-4, "fp16": 2e-4, "int8": 1e-2, "int4": 8e-2}
#: So many times further from the model than noise takes it, a file computes something else.
_MARGIN = 3


def excused(model: nn.Module, eager: Callable[[], list[Array]], expected: Sequence[Array], dtype: str) -> float:
    """The distance (as `compare` gives it) up to which a file of that precision may be from the model's outputs `expected`,
    because a model whose layers are off by NOISE is as far. eager: runs the model."""
    with _noisy(model, NOISE[dtype]):
        return _MARGIN * furthest(expected, eager())


@contextmanager
def _noisy(model: nn.Module, size: float) -> Iterator[None]:
    generator = torch.Generator().manual_seed(0)

    def disturb(layer: nn.Module, inputs: Any, y: Tensor) -> Tensor:
        noise = torch.randn(y.shape, generator=generator).to(y)
        return y + noise * (size * y.square().mean().sqrt())

    hooks = [layer.register_forward_hook(disturb) for layer in model.modules() if isinstance(layer, MoELayer)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
