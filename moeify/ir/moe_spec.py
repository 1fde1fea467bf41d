"""What a feed-forward network becomes. Specs are data: passes write them, a splice reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from moeify.errors import ConversionError
from moeify.ir.composed_spec import ComposedSpec
from moeify.ir.feed_forward import ROWWISE, FeedForward
from moeify.ir.moe_config import GateRule, MoEConfig, RouterConfig
from moeify.ir.router_scores import router_scores


@dataclass(frozen=True, eq=False)
class Router:
    """A router's shape and its tensors, by the names that RouterConfig gives them."""

    config: RouterConfig
    tensors: Mapping[str, Tensor]

    def scores(self, x: Tensor) -> Tensor:
        """Scores [tokens, experts] for x [tokens, hidden], in x's dtype."""
        return router_scores(self.config, {name: value.to(x.dtype) for name, value in self.tensors.items()}, x)


@dataclass(frozen=True, eq=False)
class Compensation:
    """What stands in for idle experts: idle [experts, output]; low_rank_in [rank, hidden], low_rank_out [rank, output]."""

    idle: Tensor | None = None
    low_rank_in: Tensor | None = None
    low_rank_out: Tensor | None = None


@dataclass(frozen=True, eq=False)
class MoESpec:
    """The MoE layer that one FeedForward becomes (docs/moe-layer.md).

    experts: the dense neurons (int64 indices) of each routed expert; sizes may differ, experts may overlap or be copies.
    shared: the dense neurons of the shared expert, possibly none.
    weights: new rows in place of the dense ones, sorted shared expert first, by the names up, gate, up_bias, gate_bias,
        down, output_bias; what is absent is gathered from the dense weights.
    shards: so many neighbouring experts are one copy of the dense FFN; None where experts are no copies.
    composed: every expert is a frozen core, the dense FFN, and what is its own; `weights` then holds the output bias at most.
    """

    experts: tuple[Tensor, ...]
    shared: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    router: Router | None = None
    gate_rule: GateRule = "one"
    normalize: bool = False
    top_k: int | None = None
    threshold: float | None = None
    selection_bias: Tensor | None = None
    compensation: Compensation = Compensation()
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    detach_sum: bool = False
    shards: int | None = None
    composed: ComposedSpec | None = None

    @property
    def order(self) -> Tensor:
        """The dense neuron behind each row of the layer, [rows]."""
        return torch.cat((self.shared, *self.experts))

    @property
    def offsets(self) -> tuple[int, ...]:
        sizes = torch.tensor([len(self.shared), *(len(e) for e in self.experts)])
        return tuple(sizes.cumsum(0).tolist())

    def partitions(self, neurons: int) -> bool:
        """Does every one of the dense neurons stand in exactly one expert, with its own weights?"""
        order = self.order
        if self.weights or self.composed is not None or len(order) != neurons:
            return False
        return bool((order.sort().values == torch.arange(neurons)).all())

    def all_on(self) -> MoESpec:
        """The same experts with all of them on, gates 1 and no compensation."""
        return replace(
            self, router=None, gate_rule="one", normalize=False, top_k=None, threshold=None, selection_bias=None,
            compensation=Compensation(), detach_sum=False,
        )  # fmt: skip

    def config(self, site: FeedForward) -> MoEConfig:
        """The shape of the layer. Raises UsageError where the parts do not fit together."""
        low_rank = self.compensation.low_rank_in
        return MoEConfig(
            hidden=site.hidden,
            output=site.output,
            activation=site.activation,
            gated=site.gated,
            offsets=self.offsets,
            router=None if self.router is None else self.router.config,
            gate_rule=self.gate_rule,
            normalize=self.normalize,
            top_k=self.top_k,
            threshold=self.threshold,
            up_bias=site.up_bias is not None or "up_bias" in self.weights,
            gate_bias=site.gate_bias is not None or "gate_bias" in self.weights,
            output_bias=site.output_bias is not None or "output_bias" in self.weights,
            selection_bias=self.selection_bias is not None,
            idle=self.compensation.idle is not None,
            rank=0 if low_rank is None else low_rank.shape[0],
            hidden_dropout=site.rewrite.hidden_dropout,
            output_dropout=site.rewrite.output_dropout,
            detach_sum=self.detach_sum,
            neurons=site.neurons,
            shards=self.shards,
            composed=None if self.composed is None else self.composed.rule,
        )

    def tensors(self, site: FeedForward) -> dict[str, Tensor]:
        """Every tensor of the layer by its name in MoELayer's state_dict; router tensors are named "router.<name>".

        In the dtype of the dense weights (selection_bias in float32). None shares memory with the host; those that the
        spec holds itself may share it with the spec.

        Raises ConversionError where a tensor is not finite.
        """
        composed = self.composed
        found = self._rows(site) if composed is None else composed.tensors(site, self.config(site).own)
        dtype = found["up" if composed is None else "core.up"].dtype
        if "output_bias" in self.weights:
            found["output_bias"] = self.weights["output_bias"]
        elif site.output_bias is not None:
            found["output_bias"] = site.output_bias.read().clone()
        for name in ("idle", "low_rank_in", "low_rank_out"):
            value = getattr(self.compensation, name)
            if value is not None:
                found[name] = value.to(dtype)
        if self.router is not None:
            found |= {f"router.{name}": value.to(dtype) for name, value in self.router.tensors.items()}
        if self.selection_bias is not None:
            found["selection_bias"] = self.selection_bias.float()
        for name, value in found.items():
            if value.numel() and not torch.stack(value.aminmax()).isfinite().all():  # a copy less than to ask every number
                raise ConversionError(f"{site.path}: {name} holds values that are not finite; check the weights of the model")
        return {name: value.contiguous() for name, value in found.items()}

    def _rows(self, site: FeedForward) -> dict[str, Tensor]:
        """The stored rows, sorted."""
        order = self.order
        found = {name: self.weights[name] for name in ROWWISE if name in self.weights}
        dense = {name: handle for name, handle in site.rowwise().items() if name not in found}
        return found | {name: handle.copied(lambda rows: rows[order]) for name, handle in dense.items()}

    def active_fraction(self, site: FeedForward, on: float | None = None) -> float:
        """MoEConfig.active_fraction of the layer this spec describes, against the site's dense FFN."""
        return self.config(site).active_fraction(site.neurons, on)
