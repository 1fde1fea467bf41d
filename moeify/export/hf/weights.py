"""The tensors of a stock model, by their names in memory: the dense model's, and those of the experts in place of its FFNs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from moeify.export.hf.families import IDLE_SHARED, Family
from moeify.export.hf.shape import StockShape
from moeify.layers.folding import folded
from moeify.layers.moe_layer import MoELayer
from moeify.layers.rows import Rows


def layer_tensors(family: Family, shape: StockShape, index: int, layer: MoELayer, scale: float) -> dict[str, Tensor]:
    """Of one MoE layer; sums of the parts are scaled as the class needs it. scale: of the router (flat_gates), 1 else."""
    layer = folded(layer)
    shared, *routed = layer.rows.runs([shape.shared, *layer.config.sizes])
    down = torch.stack([rows.down.T for rows in routed])
    found = {
        "router": router_weight(layer) * scale,
        "gate_up": torch.stack([torch.cat((_gate(rows), rows.up)) for rows in routed]),
        "down": down * shape.top_k if shape.gates == "one" and not family.scaled_by_config else down,
    }
    return {name: tensor.detach().contiguous() for name, tensor in _named(family, index, found, shared, shape, layer).items()}


def router_weight(layer: MoELayer) -> Tensor:
    """[experts, hidden]; zeros where all experts are on without one."""
    if layer.router is None:
        return torch.zeros(layer.config.experts, layer.config.hidden, dtype=next(layer.parameters()).dtype)
    return layer.router.get_parameter("weight") if "weight" in layer.router._parameters else layer.router.get_buffer("weight")


def _named(
    family: Family, index: int, found: Mapping[str, Tensor], shared: Rows, shape: StockShape, layer: MoELayer
) -> dict[str, Tensor]:
    """The names that family gives them."""
    block = f"model.layers.{index}"
    if family.target.startswith("granite"):
        inside, gate = f"{block}.block_sparse_moe", "router"
    else:
        inside, gate = f"{block}.mlp", "gate"
    named = {
        f"{inside}.{gate}.weight": found["router"],
        f"{inside}.experts.gate_up_proj": found["gate_up"],
        f"{inside}.experts.down_proj": found["down"],
    }
    match family.target:
        case "granitemoeshared":
            named[f"{block}.shared_mlp.input_linear.weight"] = torch.cat((_gate(shared), shared.up))
            named[f"{block}.shared_mlp.output_linear.weight"] = shared.down.T
        case "qwen2_moe":
            named |= _mlp(f"{inside}.shared_expert", _padded(shared, 0 if shape.shared else IDLE_SHARED), scale=2.0)
            named[f"{inside}.shared_expert_gate.weight"] = torch.zeros_like(found["router"][:1])  # half of it passes
        case "glm4_moe" | "dots1":
            named |= _mlp(f"{inside}.shared_experts", shared)
            bias = layer.selection_bias
            named[f"{inside}.gate.e_score_correction_bias"] = torch.zeros(shape.experts) if bias is None else bias
    return named


def _mlp(prefix: str, rows: Rows, scale: float = 1.0) -> dict[str, Tensor]:
    return {
        f"{prefix}.gate_proj.weight": _gate(rows),
        f"{prefix}.up_proj.weight": rows.up,
        f"{prefix}.down_proj.weight": rows.down.T * scale,
    }


def _padded(rows: Rows, more: int) -> Rows:
    """With so many rows of zeros behind them."""
    up, down, gate = (torch.cat((part, part.new_zeros(more, part.shape[1]))) for part in (rows.up, rows.down, _gate(rows)))
    return Rows(up, down, gate)


def _gate(rows: Rows) -> Tensor:
    assert rows.gate is not None  # shape_of refuses FFNs that are not gated
    return rows.gate


def other_tensors(model: nn.Module, layers: Mapping[str, MoELayer]) -> dict[str, Tensor]:
    """Everything of the converted model but its MoE layers."""
    return {
        name: tensor.detach()
        for name, tensor in model.state_dict().items()
        if not any(name.startswith(f"{path}.") for path in layers)
    }
