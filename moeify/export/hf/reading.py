"""The MoE layers of a stock model, as ones of moeify: the way back of `weights`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from moeify.errors import ConversionError
from moeify.export.hf.making import Making
from moeify.ir.moe_config import MoEConfig, RouterConfig

#: hidden_act of a config -> the activation's name here, where it is another.
_ACTIVATIONS = {"swish": "silu", "gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh", "quick_gelu": "quick-gelu"}


def moe_block(layer: Any) -> Any | None:
    """What holds router and experts in a decoder layer; None in one that is dense."""
    block = getattr(layer, "block_sparse_moe", None) or layer.mlp
    return block if hasattr(block, "experts") else None


def layer_of(config: Any, layer: Any, path: str, made: Making | None) -> tuple[MoEConfig, dict[str, Tensor]]:
    """The shape of one MoE layer and its tensors, by the names of MoELayer. config: of the stock model; made: what the
    checkpoint remembers: then gates of nearly 1 / top-k are 1 again, and routers have their own scale.

    Raises ConversionError for a shared expert with a gate of its own.
    """
    block = moe_block(layer)
    assert block is not None
    router = block.router if hasattr(block, "router") else block.gate
    gate, up = block.experts.gate_up_proj.detach().chunk(2, dim=1)
    down = block.experts.down_proj.detach().mT
    bias = getattr(router, "e_score_correction_bias", None)
    shared = _shared(layer, block, path)
    if made is not None:
        shape = made.layers[path].config
        flat, scale = shape.gate_rule == "one", made.scales[path]
    else:
        shape = _shape(
            config, router, up, 0 if shared is None else shared[0].shape[0], steered=bias is not None and bool(bias.any())
        )
        flat, scale = False, 1.0
    factor = getattr(router, "routed_scaling_factor", 1.0)
    if flat:  # by the config, or by what was multiplied into the weights
        down = down if factor != 1.0 else down / router.top_k
    elif factor != 1.0:
        down = down * factor
    runs = [(gate.flatten(0, 1), up.flatten(0, 1), down.flatten(0, 1))]
    if shared is not None and shape.shared:
        runs.insert(0, shared)
    found = {name: torch.cat([run[i] for run in runs]) for i, name in enumerate(("gate", "up", "down"))}
    if shape.router is not None:
        found["router.weight"] = router.weight.detach() / scale
    if shape.selection_bias and bias is not None:
        found["selection_bias"] = bias.detach().float()
    return shape, found


def _shape(config: Any, router: Any, up: Tensor, shared: int, *, steered: bool) -> MoEConfig:
    """Of a layer that nobody remembers: what its class computes."""
    experts, width, hidden = up.shape
    name = str(config.hidden_act)
    sigmoid = hasattr(router, "e_score_correction_bias")
    return MoEConfig(
        hidden=hidden,
        output=hidden,
        activation=_ACTIVATIONS.get(name, name),
        gated=True,
        offsets=tuple(shared + width * i for i in range(experts + 1)),
        router=RouterConfig("linear"),
        gate_rule="sigmoid" if sigmoid else "softmax",
        normalize=bool(getattr(router, "norm_topk_prob", True)),
        top_k=int(router.top_k),
        selection_bias=steered,
    )


def _shared(layer: Any, block: Any, path: str) -> tuple[Tensor, Tensor, Tensor] | None:
    """gate, up and down [neurons, hidden] of the shared expert; None where there is none, or it is all zeros."""
    if (mlp := getattr(layer, "shared_mlp", None)) is not None:
        gate, up = mlp.input_linear.weight.detach().chunk(2)
        return gate, up, mlp.output_linear.weight.detach().T
    if (mlp := getattr(block, "shared_experts", None)) is not None:
        return _plain(mlp, 1.0)
    if (mlp := getattr(block, "shared_expert", None)) is None or not bool(mlp.down_proj.weight.any()):
        return None
    if bool(block.shared_expert_gate.weight.any()):
        raise ConversionError(f"{path}: its shared expert has a gate that depends on the token, and moeify's is always on")
    return _plain(mlp, 0.5)  # a gate of zeros lets half of it pass


def _plain(mlp: nn.Module, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    gate, up, down = (mlp.get_parameter(f"{name}_proj.weight").detach() for name in ("gate", "up", "down"))
    return gate, up, down.T * scale
