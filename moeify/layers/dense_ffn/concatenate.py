"""A split FFN put together again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from moeify.errors import UsageError
from moeify.ir.moe_config import MoEConfig
from moeify.layers.dense_ffn.strategy import DenseWeights, check_low_rank, output_bias_of, rows_of
from moeify.layers.moe_layer import MoELayer


@dataclass(frozen=True)
class Concatenate:
    """All rows one after the other, the shared expert first (EMoE, Qiu et al. 2024, section 3).

    Exact: the layer with all experts on and constant gates: 1 for the rule `one`, 1 / experts where that is normalised. Idle
    vectors, selection bias, top-k and threshold have no say where all experts are on.
    """

    name: ClassVar[str] = "concatenate"

    def check(self, config: MoEConfig, neurons: int) -> None:
        if config.rows != neurons:
            why = "its experts are copies of it: gather them by mean" if config.shards else "neurons were left out or copied"
            raise UsageError(f"its experts hold {config.rows} neurons, its dense network has place for {neurons}: {why}")
        if config.gate_rule != "one":
            raise UsageError(
                f"its gates are {config.gate_rule} values, other ones for every token, which no dense network has: "
                "convert with insert-router.gate=one"
            )
        check_low_rank(config)

    def equals(self, config: MoEConfig) -> str:
        chosen = config.smear or config.threshold is not None or config.top_k not in (None, config.experts)
        return "the layer with all experts on" if chosen else "the layer as it is"

    def gather(self, layer: MoELayer) -> DenseWeights:
        found = rows_of(layer)
        if layer.config.normalize:
            gates = torch.full_like(found["down"][:, :1], 1 / layer.config.experts)
            gates[: layer.config.shared] = 1
            found["down"] = found["down"] * gates
        return found | output_bias_of(layer)
