"""What stands in a model: feed-forward networks of a dense one, MoE layers of a converted one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from moeify.ir.feed_forward import FeedForward, Refusal
from moeify.ir.moe_config import MoEConfig


@dataclass(frozen=True)
class Inspection:
    """kind: what the model is. rows: one a network or layer, each with the same keys. refusals: what looks like a
    feed-forward network and is left alone, and why."""

    kind: Literal["dense", "converted", "onnx"]
    rows: tuple[dict[str, Any], ...]
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def site_rows(sites: Iterable[FeedForward]) -> tuple[dict[str, Any], ...]:
    """A row a feed-forward network; parameters count matrices."""
    return tuple(
        {
            "path": site.path,
            "kind": site.kind,
            "activation": site.activation,
            "hidden": site.hidden,
            "neurons": site.neurons,
            "output": site.output,
            "calls": site.calls,
            "parameters": site.parameters,
            "rewrite": site.rewrite.way,
        }
        for site in sites
    )


def layer_rows(layers: Iterable[tuple[str, MoEConfig, str]]) -> tuple[dict[str, Any], ...]:
    """A row an MoE layer, from (path, shape, way of rewriting)."""
    return tuple(
        {
            "path": path,
            "kind": "gated" if config.gated else "two-matrix",
            "activation": config.activation,
            "hidden": config.hidden,
            "experts": config.experts,
            "sizes": sizes_text(config.sizes),
            "shared": config.shared,
            "router": None if config.router is None else config.router.kind,
            "gate": config.gate_rule,
            "top_k": config.top_k,
            "threshold": config.threshold,
            "parameters": config.parameters,
            "rewrite": way,
        }
        for path, config, way in layers
    )


def sizes_text(sizes: tuple[int, ...]) -> str:
    """`96`, or `95..97` where sizes differ."""
    return str(sizes[0]) if len(set(sizes)) == 1 else f"{min(sizes)}..{max(sizes)}"
