"""Rows on a frozen core, as a pass writes them (docs/moe-layer.md, 'Composed rows')."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moeify.ir.composition import Composition
from moeify.ir.feed_forward import FeedForward


@dataclass(frozen=True, eq=False)
class ComposedSpec:
    """rule: how rows are composed. core: tensors in place of the dense FFN's, by name; absent ones are the dense ones.

    own: what is trained, by name, [runs, ...]; absent ones are zeros.
    """

    rule: Composition
    core: Mapping[str, Tensor] = field(default_factory=dict)
    own: Mapping[str, Tensor] = field(default_factory=dict)

    def tensors(self, site: FeedForward, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Every tensor by its name in the layer: core.*, and residual.* or lora.*, in the dtype of the dense weights.

        None shares memory with the host. shapes: of what is trained, by name.
        """
        dense = site.rowwise()
        core = {name: self.core[name] if name in self.core else handle.read().clone() for name, handle in dense.items()}
        dtype = core["up"].dtype
        found = {f"core.{name}": value for name, value in core.items()}
        for name, shape in shapes.items():
            given = self.own.get(name)
            found[f"{self.rule.kind}.{name}"] = torch.zeros(shape, dtype=dtype) if given is None else given.to(dtype)
        return found
