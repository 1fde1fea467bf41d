"""A spec as plain data and tensors by name, and back: the form in which one can be kept in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from moeify.ir.composed_spec import ComposedSpec
from moeify.ir.composition import Composition
from moeify.ir.moe_config import RouterConfig
from moeify.ir.moe_spec import Compensation, MoESpec, Router

#: Fields that are plain values.
_VALUES = ("gate_rule", "normalize", "detach_sum", "top_k", "threshold", "shards")
_COMPENSATION = ("idle", "low_rank_in", "low_rank_out")


def spec_data(spec: MoESpec) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(values for JSON, tensors by name) from which `spec_of` makes an equal spec."""
    values: dict[str, Any] = {name: getattr(spec, name) for name in _VALUES}
    values |= {"experts": len(spec.experts), "router": None, "composed": None}
    tensors = {f"experts.{i}": expert for i, expert in enumerate(spec.experts)} | {"shared": spec.shared}
    if spec.router is not None:
        values["router"] = asdict(spec.router.config)
        tensors |= {f"router.{name}": value for name, value in spec.router.tensors.items()}
    if spec.selection_bias is not None:
        tensors["selection_bias"] = spec.selection_bias
    if spec.composed is not None:
        values["composed"] = asdict(spec.composed.rule)
        tensors |= {f"core.{name}": value for name, value in spec.composed.core.items()}
        tensors |= {f"own.{name}": value for name, value in spec.composed.own.items()}
    for name in _COMPENSATION:
        if (vectors := getattr(spec.compensation, name)) is not None:
            tensors[f"compensation.{name}"] = vectors
    return values, tensors | {f"weights.{name}": value for name, value in spec.weights.items()}


def spec_of(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> MoESpec:
    """The inverse of `spec_data`. Raises KeyError or TypeError for what `spec_data` did not make."""
    router, rule = values["router"], values["composed"]
    composed = None if rule is None else ComposedSpec(Composition(**rule), _under("core.", tensors), _under("own.", tensors))
    return MoESpec(
        experts=tuple(tensors[f"experts.{i}"] for i in range(values["experts"])),
        shared=tensors["shared"],
        router=None if router is None else Router(RouterConfig(**router), _under("router.", tensors)),
        selection_bias=tensors.get("selection_bias"),
        compensation=Compensation(*(tensors.get(f"compensation.{name}") for name in _COMPENSATION)),
        weights=_under("weights.", tensors),
        composed=composed,
        **{name: values[name] for name in _VALUES},
    )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
