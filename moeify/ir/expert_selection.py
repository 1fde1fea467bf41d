"""Some of a layer's routed experts, in any order, one perhaps twice: what belongs to an expert goes with it.

The shared expert stays. Experts are counted from 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from moeify.ir.composed_spec import ComposedSpec
from moeify.ir.feed_forward import ROWWISE
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.ir.moe_spec import MoESpec, Router

#: Tensors of a layer with an entry for each expert.
_BY_EXPERT = ("idle", "selection_bias")
#: Tensors of an mlp router that serve all experts; all others of routers have entries for each.
_FOR_ALL = ("weight_in", "bias_in")


def select_config(config: MoEConfig, experts: Sequence[int]) -> MoEConfig:
    """The shape of the layer with those experts; it stays one of copies where whole copies go along.

    Raises UsageError for fewer experts than top_k, or none.
    """
    offsets = tuple(accumulate((config.sizes[e] for e in experts), initial=config.shared))
    return replace(config, offsets=offsets, neurons=config.dense_neurons, shards=_shards(config.shards, experts))


def select_tensors(config: MoEConfig, tensors: Mapping[str, Tensor], experts: Sequence[int]) -> dict[str, Tensor]:
    """Those tensors of the layer, by their names in its state_dict, that change; in new memory."""
    rows, chosen = _rows(config.offsets, experts), torch.tensor(experts)
    found = {name: value[rows.to(value.device)] for name, value in tensors.items() if name in ROWWISE}
    if config.composed is not None:
        runs = _runs(config.shared > 0, experts)
        own = f"{config.composed.kind}."
        found |= {name: value[runs.to(value.device)] for name, value in tensors.items() if name.startswith(own)}
    found |= {name: value[chosen.to(value.device)] for name, value in tensors.items() if name in _BY_EXPERT}
    if config.router is not None:
        of_router = {name.removeprefix("router."): value for name, value in tensors.items() if name.startswith("router.")}
        found |= {f"router.{name}": value for name, value in _of_router(config.router, of_router, chosen).items()}
    return found


def select_spec(spec: MoESpec, experts: Sequence[int]) -> MoESpec:
    """The spec with those experts alone."""
    rows, chosen = _rows(spec.offsets, experts), torch.tensor(experts)
    idle, bias, router = spec.compensation.idle, spec.selection_bias, spec.router
    return replace(
        spec,
        experts=tuple(spec.experts[e] for e in experts),
        router=router and Router(router.config, {**router.tensors, **_of_router(router.config, router.tensors, chosen)}),
        selection_bias=None if bias is None else bias[chosen],
        compensation=replace(spec.compensation, idle=None if idle is None else idle[chosen]),
        weights={name: value[rows] if name in ROWWISE else value for name, value in spec.weights.items()},
        shards=_shards(spec.shards, experts),
        composed=_composed(spec, experts),
    )


def _shards(shards: int | None, experts: Sequence[int]) -> int | None:
    """Of the selection: None where a copy was torn apart."""
    if shards is None:
        return None
    copies = [list(experts[i : i + shards]) for i in range(0, len(experts), shards)]
    whole = all(copy[0] % shards == 0 and copy == list(range(copy[0], copy[0] + shards)) for copy in copies)
    return shards if whole else None


def _rows(offsets: Sequence[int], experts: Sequence[int]) -> Tensor:
    """int64: the rows of the shared expert, then those of each expert."""
    runs = [torch.arange(offsets[0]), *(torch.arange(offsets[e], offsets[e + 1]) for e in experts)]
    return torch.cat(runs)


def _composed(spec: MoESpec, experts: Sequence[int]) -> ComposedSpec | None:
    if spec.composed is None:
        return None
    runs = _runs(len(spec.shared) > 0, experts)
    return replace(spec.composed, own={name: value[runs] for name, value in spec.composed.own.items()})


def _runs(shared: bool, experts: Sequence[int]) -> Tensor:
    """int64: the runs of composed rows that stay, the shared expert's first."""
    return torch.tensor([*([0] if shared else []), *(int(shared) + e for e in experts)])


def _of_router(config: RouterConfig, tensors: Mapping[str, Tensor], experts: Tensor) -> dict[str, Tensor]:
    """Those of a router's tensors that change. A spectral one has `width` rows for each expert."""
    run = config.width or 1 if config.kind == "spectral" else 1
    return {
        name: value.view(-1, run, *value.shape[1:])[experts.to(value.device)].flatten(0, 1)
        for name, value in tensors.items()
        if name not in _FOR_ALL
    }
