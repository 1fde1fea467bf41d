"""What an MoE layer does in training beyond its own mathematics: plain options, checked when they are set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from moeify.errors import UsageError
from moeify.ir.moe_config import MoEConfig

RouterGradient = Literal["straight-through", "sparse-mixer"]
Drop = Literal["gate", "position"]

#: The losses of a layer: those on its routing, and that on its hidden activations.
ROUTING_LOSSES = ("load_balance", "z_loss", "importance", "load")
LOSSES = (*ROUTING_LOSSES, "sparsity")


@dataclass(frozen=True)
class TrainingRule:
    """The options of `moeify.set_training`, where each is explained. 0, None and False: off."""

    load_balance: float = 0.0
    z_loss: float = 0.0
    importance: float = 0.0
    load: float = 0.0
    sparsity: float = 0.0
    sparsity_floor: float | None = None
    bias_rate: float = 0.0
    jitter: float = 0.0
    router_noise: float = 0.0
    gating_dropout: float = 0.0
    capacity_factor: float | None = None
    drop: Drop = "gate"
    router_gradient: RouterGradient | None = None
    attach: bool | float = False

    def __post_init__(self) -> None:
        for name in LOSSES:
            _check_number(self, name, "a weight from 0, such as 0.01")
        for name in ("jitter", "gating_dropout"):
            _check_number(self, name, "a number from 0 to less than 1, such as 0.1", below=1)
        _check_number(self, "router_noise", "a standard deviation from 0, such as 0.1")
        _check_number(self, "bias_rate", "a step from 0, such as 0.001")
        _check_number(self, "attach", "True, False, or a factor such as 0.25 for 4 accumulated batches")
        if self.capacity_factor is not None:
            _check_number(self, "capacity_factor", "a number above 0, such as 1.25, or None for no limit", above=0)
        if self.sparsity_floor is not None:
            _check_number(self, "sparsity_floor", "a finite number, such as -10", above=-math.inf)
        for name, known in (("drop", get_args(Drop)), ("router_gradient", (None, *get_args(RouterGradient)))):
            if (value := getattr(self, name)) not in known:
                raise UsageError(f"{name} is {value!r}: choose one of {', '.join(str(k) for k in known)}")
        self._check_company()

    def _check_company(self) -> None:
        """What makes no sense without, or together with, another option."""
        if self.attach and not self.losses:
            raise UsageError(f"attach is set but no loss is: give one of {', '.join(LOSSES)} a weight")
        if self.load and not self.router_noise:
            raise UsageError("load is a smooth estimate only where there is noise: set router_noise, or use load_balance")
        if self.load and self.bias_rate:
            raise UsageError("load estimates a choice without selection bias: set bias_rate or load, not both")
        if self.sparsity_floor is not None and not self.sparsity:
            raise UsageError("sparsity_floor belongs to sparsity: give sparsity a weight")
        if self.router_gradient == "sparse-mixer":
            if not self.jitter:
                raise UsageError("sparse-mixer draws among the experts that jitter could reach: set jitter, such as 0.1")
            if self.router_noise or self.bias_rate or self.gating_dropout:
                raise UsageError("sparse-mixer draws its expert: leave router_noise, bias_rate and gating_dropout out")

    def check_layer(self, name: str, config: MoEConfig) -> None:
        """Raises UsageError for a layer of that shape on which the rule cannot be."""
        router = config.router
        if config.smear and self != TrainingRule():
            raise UsageError(f"{name}: runs one mean of its experts (SMEAR) and chooses none: call set_smear(model, False)")
        wanted = [option for option in _ROUTING_OPTIONS if getattr(self, option)]
        if wanted and (router is None or router.kind == "stochastic"):
            kind = "has no router" if router is None else "draws its experts"
            raise UsageError(f"{name}: {wanted[0]} needs a router that learns, and this layer {kind}")
        if self.load and config.top_k in (None, config.experts):
            raise UsageError(f"{name}: load estimates a choice of the best, and top_k is {config.top_k}: use load_balance")
        if self.router_gradient == "straight-through" and config.gate_rule != "one":
            raise UsageError(
                f"{name}: straight-through is for gates of 1; the gate rule {config.gate_rule} has a gradient of its own"
            )
        if self.router_gradient == "sparse-mixer":
            if config.gate_rule != "softmax" or config.top_k != 1 or config.threshold is not None:
                raise UsageError(
                    f"{name}: sparse-mixer draws one expert by its softmax gate; here gate_rule is {config.gate_rule},"
                    f" top_k {config.top_k} and threshold {config.threshold}"
                )
            if config.normalize and not config.detach_sum:
                raise UsageError(f"{name}: sparse-mixer learns nothing from gates that are always 1: convert with detach_sum")

    @property
    def losses(self) -> dict[str, float]:
        """The weights above 0, by the names of the losses."""
        return {name: weight for name in LOSSES if (weight := getattr(self, name))}

    @property
    def steers(self) -> bool:
        """Do choice and gates differ from those of inference?"""
        changed = self.gating_dropout or self.capacity_factor is not None or self.router_gradient == "sparse-mixer"
        return bool(self.router_noise or changed)

    @property
    def looks(self) -> bool:
        """Has somebody to look at the routing of a forward?"""
        return self.steers or any(getattr(self, name) for name in ROUTING_LOSSES)

    @property
    def input_jitter(self) -> float:
        """The jitter that is put on the router's input; sparse-mixer only asks how far it would reach."""
        return 0.0 if self.router_gradient == "sparse-mixer" else self.jitter


_ROUTING_OPTIONS = (
    *ROUTING_LOSSES, "bias_rate", "jitter", "router_noise", "gating_dropout", "capacity_factor", "router_gradient",
)  # fmt: skip


def _check_number(rule: TrainingRule, name: str, choice: str, above: float | None = None, below: float = math.inf) -> None:
    """Is the option a number from 0, or above `above`, to less than `below`?"""
    value = getattr(rule, name)
    if not isinstance(value, int | float) or not value < below or not (value >= 0 if above is None else value > above):
        raise UsageError(f"{name} is {value!r}: choose {choice}")
