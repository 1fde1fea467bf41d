"""The MoE layer of a converted model (docs/moe-layer.md)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from moeify.errors import ConversionError
from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_config import MoEConfig
from moeify.ir.moe_spec import MoESpec
from moeify.layers.composed_modules import add_composed, composed_rows
from moeify.layers.composed_rows import ComposedRows, plain_rows
from moeify.layers.experts import LayerWeights, run_all, run_layer
from moeify.layers.modes import ROUTED, Mode, mode_of
from moeify.layers.operator import as_node
from moeify.layers.origin import Origin
from moeify.layers.routers import AverageKeyRouter, build_router
from moeify.layers.routing import ChoiceRule, Routing, route
from moeify.layers.rows import Rows
from moeify.layers.smear import run_smeared, smeared_routing
from moeify.layers.token_input import TokenInput
from moeify.layers.training_state import Steering, TrainingState


class MoELayer(nn.Module):
    """A feed-forward network split into experts: y [..., output] of x [..., hidden].

    Parameters, in state_dict by the names of MoESpec.tensors: up, gate [rows, hidden]; down [rows, output]; up_bias, gate_bias
    [rows]; output_bias [output]; idle [experts, output]; low_rank_in [rank, hidden]; low_rank_out [rank, output]; `router.*`;
    and the buffer selection_bias [experts] (float32). What the config leaves out is None. All are zeros until loaded. Where
    rows are composed there are `core.*`, frozen, and `residual.*` or `lora.*` in place of up, gate, down and their biases.

    `top_k` and `threshold` are the budget, to be set at any time; `config` always shows them. Weights are cast to x's dtype
    (to that of autocast, where it is on). Under torch.compile and torch.export the layer is one `moeify::moe` node.
    `origin`: the dense FFN that it took the place of; `tokens`: what the model was called with, which a layer that smears asks.
    Both are set by whoever puts the layer into a model.
    """

    config: MoEConfig
    origin: Origin | None = None
    selection_bias: Tensor | None
    router: nn.Module | None

    def __init__(
        self, config: MoEConfig, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.config = config
        place = None if device is None else torch.device(device)

        def weight(present: bool, *shape: int) -> nn.Parameter | None:
            return nn.Parameter(torch.zeros(shape, dtype=dtype, device=place)) if present else None

        rows, experts, stored = config.rows, config.experts, config.composed is None
        if stored:
            self.up = nn.Parameter(torch.zeros(rows, config.hidden, dtype=dtype, device=place))
            self.down = nn.Parameter(torch.zeros(rows, config.output, dtype=dtype, device=place))
        self.gate = weight(stored and config.gated, rows, config.hidden)
        self.up_bias = weight(stored and config.up_bias, rows)
        self.gate_bias = weight(stored and config.gate_bias, rows)
        self.output_bias = weight(config.output_bias, config.output)
        self.idle = weight(config.idle, experts, config.output)
        self.low_rank_in = weight(config.rank > 0, config.rank, config.hidden)
        self.low_rank_out = weight(config.rank > 0, config.rank, config.output)
        bias = torch.zeros(experts, dtype=torch.float32, device=place) if config.selection_bias else None
        self.register_buffer("selection_bias", bias)
        self.tokens = TokenInput()
        if not stored:
            add_composed(self, config, dtype, place)
        self.router = build_router(config, dtype, place)
        # Not a buffer: it is part of the config, and must hold its values even where the weights are on the meta device.
        self._offsets = torch.tensor(config.offsets, dtype=torch.int64, device="cpu")
        self.training_state: TrainingState | None = None  # set by moeify.set_training

    @classmethod
    def from_spec(cls, site: FeedForward, spec: MoESpec) -> Self:
        """The layer that the spec describes, in the dtype and on the device of the site's weights.

        Raises UsageError for parts that do not fit together, ConversionError for tensors of another shape or name.
        """
        layer = cls(spec.config(site), device="meta")
        try:
            layer.load_state_dict(spec.tensors(site), assign=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ConversionError(f"{site.path}: the tensors of the spec do not fit its MoE layer: {reason}") from error
        return layer

    @property
    def top_k(self) -> int | None:
        """At most so many experts a token; None: no such rule. Setting raises UsageError outside 1 .. experts."""
        return self.config.top_k

    @top_k.setter
    def top_k(self, value: int | None) -> None:
        self.config = replace(self.config, top_k=value)

    @property
    def threshold(self) -> float | None:
        """The least value of a chosen expert; None: no such rule. Setting raises UsageError where there is no router."""
        return self.config.threshold

    @threshold.setter
    def threshold(self, value: float | None) -> None:
        self.config = replace(self.config, threshold=value)

    def forward(self, x: Tensor) -> Tensor:
        x = _cast_by_autocast(x)
        if self.config.smear:
            y = run_smeared(x, self._scores(x), self._weights, self.tokens)
        elif (state := self.training_state if self.training else None) is None:
            y = self._run(x, self._mode.weights(self._weights))
        else:
            weights = state.watching(self._weights, x)
            steering = state.steer(x, self._scores(state.router_input(x)), self._rule, self.selection_bias)
            y = state.noted(x, self._run(x, weights, steering), steering, weights)
        return F.dropout(y, self.config.output_dropout) if self.training and self.config.output_dropout else y

    def _run(self, x: Tensor, weights: LayerWeights, steering: Steering | None = None) -> Tensor:
        """y [..., output] of x [..., hidden]; steering: None: the router's scores and the rule of the config."""
        dense = steering is None and self._dense
        opaque = torch.compiler.is_compiling() and not weights.hidden_dropout and weights.watch is None
        if dense and not (opaque and torch.compiler.is_exporting()):
            y = run_all(x.reshape(-1, self.config.hidden), weights, None)
        else:
            s = steering or Steering(self._scores(x), self._rule, self.selection_bias)
            if opaque:
                offsets = self._mode.offsets(self._offsets, weights)
                return as_node(x, s.scores, weights, offsets, s.rule, s.bias)
            y = run_layer(x.reshape(-1, self.config.hidden), s.scores.reshape(-1, s.scores.shape[-1]), weights, s.rule, s.bias)
        return y.view(*x.shape[:-1], self.config.output)

    def route(self, x: Tensor) -> Routing:
        """Which experts run on each token of x [..., hidden], and with which gates; every expert where they are merged."""
        if self.config.smear:
            return smeared_routing(x, self._scores(x), self.tokens)
        scores = ROUTED.no_scores(x, self.config) if self._mode.every else self._scores(x)
        return route(scores.reshape(-1, scores.shape[-1]), self._rule, self.selection_bias)

    def train(self, mode: bool = True) -> Self:
        if self.training and not mode:
            self.store_average_keys()
        return super().train(mode)

    @property
    def rows(self) -> Rows:
        """All rows, the shared expert's first; composed ones are folded."""
        return plain_rows(self._rows)

    @property
    def _rows(self) -> Rows | ComposedRows:
        if self.config.composed is not None:
            return composed_rows(self, self.config)
        return Rows(self.up, self.down, self.gate, self.up_bias, self.gate_bias)

    @property
    def _weights(self) -> LayerWeights:
        return LayerWeights(
            self._rows,
            self.config.offsets,
            self.config.activation,
            self.output_bias,
            self.idle,
            self.low_rank_in,
            self.low_rank_out,
            self.config.hidden_dropout if self.training else 0.0,
        )

    @property
    def _rule(self) -> ChoiceRule:
        return self._mode.rule(self.config)

    @property
    def _mode(self) -> Mode:
        return mode_of(self.router)

    @property
    def _dense(self) -> bool:
        """Are all experts on with gate 1, and no router waits for a gradient?"""
        rule = self._rule
        always = rule.unit_gates and rule.chooses_all(self.config.experts)
        return always and (self.router is None or not torch.is_grad_enabled())

    def _scores(self, x: Tensor) -> Tensor:
        if self.router is None or self._mode.every:
            return self._mode.no_scores(x, self.config)
        # Keys that an adapter adds to as they are used are not those that the router was told of.
        if isinstance(self.router, AverageKeyRouter) and (self.training or parametrize.is_parametrized(self)):
            return self._follow_keys(self.router, x)
        scores: Tensor = self.router(x)
        return scores

    def _follow_keys(self, router: AverageKeyRouter, x: Tensor) -> Tensor:
        return router.follow(x, *self.rows.keys, self.config.offsets)

    @torch.no_grad()
    def store_average_keys(self) -> None:
        """Gives a router of average keys those of the weights as they are now; in training mode it takes them by itself."""
        if isinstance(self.router, AverageKeyRouter):
            self._follow_keys(self.router, self.router.weight.new_empty(0, self.config.hidden))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if self.training:
            self.store_average_keys()
        super()._save_to_state_dict(destination, prefix, keep_vars)


def _cast_by_autocast(x: Tensor) -> Tensor:
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))
