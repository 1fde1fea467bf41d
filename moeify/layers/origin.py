"""What an MoE layer took the place of: enough to put the dense FFN back, without the values of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from moeify.ir.feed_forward import Rewrite
from moeify.ir.weight_place import WeightPlace


@dataclass(frozen=True)
class BareTensor:
    """A tensor that was taken out of a module. register: the module's dict that held it; before: the names in it, in order."""

    tensor: Tensor = field(repr=False)
    register: str
    before: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Origin:
    """The dense FFN that was replaced. Dense weights are on the meta device; whatever else stood there is as it was.

    path: of the site. places: where its weights stood, by role. modules: what stood at the replaced paths. tensors: bare
    parameters that were taken out, by path. fast_path: the path of an nn.TransformerEncoderLayer and its flag that was
    cleared. trouble: why there is no way back all the same, in words.
    """

    path: str
    rewrite: Rewrite
    places: Mapping[str, WeightPlace]
    modules: Mapping[str, nn.Module] = field(default_factory=dict, repr=False)
    tensors: Mapping[str, BareTensor] = field(default_factory=dict, repr=False)
    fast_path: tuple[str, int] | None = None
    trouble: str | None = None
