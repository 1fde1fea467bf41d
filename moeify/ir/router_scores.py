"""What routers compute (docs/moe-layer.md, 'Routers'): pure functions of tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import linear

from moeify.ir.activations import activation
from moeify.ir.router_config import RouterConfig


def router_scores(config: RouterConfig, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Scores [..., experts] of x [..., hidden], in x's dtype. tensors: by the names of RouterConfig.shapes, in x's dtype."""
    if config.unit_input:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_precise(x))
        x = x / norm.to(x.dtype).clamp(min=torch.finfo(x.dtype).tiny)
    scores = _RAW[config.kind](config, tensors, x)
    if config.output == "identity":
        return scores
    scores = scores.abs()
    if config.output == "abs":
        return scores
    return scores / scores.amax(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)


def _linear(config: RouterConfig, t: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return linear(x, t["weight"], t.get("bias"))


def _mlp(config: RouterConfig, t: Mapping[str, Tensor], x: Tensor) -> Tensor:
    inner = activation(config.activation or "identity")(linear(x, t["weight_in"], t.get("bias_in")))
    return linear(inner, t["weight_out"], t.get("bias_out"))


def _neuron(config: RouterConfig, t: Mapping[str, Tensor], x: Tensor) -> Tensor:
    act = activation(config.activation or "identity")
    up = linear(x, t["up"], t.get("up_bias"))
    return act(linear(x, t["gate"], t.get("gate_bias"))) * up if config.gated else act(up)


def _spectral(config: RouterConfig, t: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Norms in float32 at least: their squares leave the range of half precision."""

    def norm(rows: Tensor) -> Tensor:
        projected = linear(x, rows)
        parts = projected.reshape(*x.shape[:-1], -1, config.width or 1)
        norms: Tensor = torch.linalg.vector_norm(parts, dim=-1, dtype=_precise(x))
        return norms

    return (norm(t["up"]) * norm(t["gate"]) if config.gated else norm(t["up"])).to(x.dtype)


def _precise(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


_RAW = {"linear": _linear, "average-key": _linear, "mlp": _mlp, "neuron": _neuron, "spectral": _spectral}
