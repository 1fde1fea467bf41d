"""The cases of moe_cases as eager layers, as calls of the operator, and as the reference sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moe_cases import Case
from moe_reference import Float
from moe_reference import moe as reference
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.layers.experts import LayerWeights, run_layer
from moeify.layers.moe_layer import MoELayer
from moeify.layers.operator import moe
from moeify.layers.routing import ChoiceRule
from moeify.layers.rows import Rows

OPERATOR_INPUTS = (
    "x", "scores", "up", "down", "offsets", "k", "threshold", "gate", "up_bias", "gate_bias", "selection_bias", "output_bias",
    "idle", "low_rank_in", "low_rank_out",
)  # fmt: skip
FLOATS = tuple(name for name in OPERATOR_INPUTS if name not in ("offsets", "k", "threshold", "selection_bias"))


class FixedScores(nn.Module):
    """A router that gives the scores of a case, whatever it is asked."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores.view(*x.shape[:-1], self.scores.shape[-1])


def case_tensors(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """The inputs of the case by name, floats in that dtype; k and threshold as numbers, absent ones None."""
    found: dict[str, Any] = dict.fromkeys(OPERATOR_INPUTS)
    for name, value in case.inputs.items():
        tensor = torch.from_numpy(np.asarray(value))
        found[name] = tensor.item() if name in ("k", "threshold") else tensor
        if name in FLOATS:
            found[name] = tensor.to(dtype)
    return found


def expected(case: Case, dtype: torch.dtype = torch.float32) -> Float:
    """The reference's y; the inputs are first rounded to that dtype, as the layer sees them."""
    tensors = case_tensors(case, dtype)
    rounded = {name: tensors[name].double().numpy() for name in FLOATS if tensors[name] is not None}
    inputs: dict[str, Any] = {**case.inputs, **rounded}
    return reference(**inputs, **case.attributes)


def by_operator(case: Case, tensors: dict[str, Any]) -> Tensor:
    y: Tensor = moe(*(tensors[name] for name in OPERATOR_INPUTS), *case.attributes.values())
    return y


def by_functions(case: Case, t: dict[str, Any]) -> Tensor:
    """y by the pure functions that the eager layer runs."""
    v = case.variant
    optional = (t["output_bias"], t["idle"], t["low_rank_in"], t["low_rank_out"])
    rows = Rows(t["up"], t["down"], t["gate"], t["up_bias"], t["gate_bias"])
    weights = LayerWeights(rows, tuple(t["offsets"].tolist()), v.activation, *optional)
    rule = ChoiceRule(t["k"], t["threshold"], case.attributes["gate_rule"], v.normalize)
    flat = t["x"].reshape(-1, v.hidden), t["scores"].reshape(-1, len(v.sizes))
    return run_layer(*flat, weights, rule, t["selection_bias"]).view(*v.lead, v.output)


def case_layer(case: Case, dtype: torch.dtype) -> MoELayer:
    """The eager layer with the weights of the case and a router that gives its scores."""
    v, t = case.variant, case_tensors(case, dtype)
    config = MoEConfig(
        hidden=v.hidden, output=v.output, activation=v.activation, gated=v.gated, offsets=tuple(t["offsets"].tolist()),
        router=RouterConfig("linear"), gate_rule=case.attributes["gate_rule"], normalize=v.normalize, top_k=t["k"],
        threshold=t["threshold"], up_bias=v.up_bias, gate_bias=t["gate_bias"] is not None, output_bias=v.output_bias,
        selection_bias=v.selection_bias, idle=v.idle, rank=v.rank,
    )  # fmt: skip
    layer = MoELayer(config, dtype=dtype)
    layer.router = FixedScores(t["scores"])
    given = {name: t[name] for name in layer.state_dict() if not name.startswith("router")}
    layer.load_state_dict({**given, "router.scores": t["scores"]})
    return layer


def relative_error(y: Tensor, truth: Float) -> float:
    """The largest difference / the largest output; 0 for no output at all."""
    assert tuple(y.shape) == truth.shape
    if not truth.size:
        return 0.0
    difference = np.abs(y.detach().double().numpy() - truth).max()
    return float(difference / max(np.abs(truth).max(), 1e-3))
