"""The parameters of composed rows in a layer: a frozen core, and beside it what is trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from moeify.ir.moe_config import MoEConfig
from moeify.layers.composed_rows import ComposedRows
from moeify.layers.rows import Rows


class NamedTensors(nn.Module):
    """Parameters of those shapes, by name; zeros until loaded. trained: else no gradient reaches them."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], *, trained: bool, dtype: torch.dtype | None, device: torch.device | None
    ) -> None:
        super().__init__()
        for name, shape in shapes.items():
            value = torch.zeros(shape, dtype=dtype, device=device)
            self.register_parameter(name, nn.Parameter(value, requires_grad=trained))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The parameters by name."""
        return dict(self.named_parameters(recurse=False))

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={list(value.shape)}" for name, value in self.tensors.items())


def add_composed(layer: nn.Module, config: MoEConfig, dtype: torch.dtype | None, device: torch.device | None) -> None:
    """Gives the layer a `core` that is not trained, and `residual` or `lora`, which is. No optimizer moves the core: not by
    a gradient, and not by weight decay, which spares parameters that never had one."""
    assert config.composed is not None
    layer.add_module("core", NamedTensors(config.core, trained=False, dtype=dtype, device=device))
    layer.add_module(config.composed.kind, NamedTensors(config.own, trained=True, dtype=dtype, device=device))
    if config.output_bias:
        layer.get_parameter("output_bias").requires_grad_(False)


def composed_rows(layer: nn.Module, config: MoEConfig) -> ComposedRows:
    """What `add_composed` gave the layer, as rows."""
    assert config.composed is not None
    core, own = layer.get_submodule("core"), layer.get_submodule(config.composed.kind)
    assert isinstance(core, NamedTensors)
    assert isinstance(own, NamedTensors)
    return ComposedRows(config.composed, Rows(**core.tensors), own.tensors, config.shared > 0)
