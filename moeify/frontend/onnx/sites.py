"""The feed-forward networks of an ONNX graph, by the matcher that finds them in torch models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from moeify.frontend.match import Found, match
from moeify.frontend.onnx.cutting import cut
from moeify.frontend.onnx.model import OnnxModel
from moeify.frontend.onnx.regions import Region, region
from moeify.frontend.onnx.view import VALUE, onnx_view
from moeify.frontend.rewrite_choice import Match
from moeify.frontend.traced import Traced, live_tensor
from moeify.ir.feed_forward import Rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

_FUSED = "its input or output is no value of the graph: it is part of a fused operator"


def find_sites(model: OnnxModel, values: Mapping[str, Tensor]) -> Found:
    """Cuts the model at what is found; the calls are those of `model.traced`. values: every value, on the meta device."""
    view = onnx_view(model.graph, model.paths, values)
    places = _Places(model, view)
    found = match(model, view, places.way)
    regions = {site.path: places.found[site.rewrite.modules["y"]] for site in found.sites}
    channels = frozenset(site.path for site in found.sites if site.rewrite.channels)
    return Found(found.sites, found.refusals, cut(model, regions, channels, values))


def regions_of(graph: ir.Graph, rewrite: Rewrite) -> tuple[Region, ...] | None:
    """Where a rewrite of the way "graph" finds its values; None where the graph has no such feed-forward network."""
    values = {str(value.name): value for node in graph for value in node.outputs} | {str(v.name): v for v in graph.inputs}
    ends = [(values.get(x), values.get(y)) for x, y in _ends(rewrite)]
    found = [region(graph, x, y) for x, y in ends if x is not None and y is not None]
    whole = tuple(each for each in found if each is not None)
    return whole if len(whole) == len(ends) > 0 else None


def _ends(rewrite: Rewrite) -> Iterator[tuple[str, str]]:
    """The names of x and y of each call."""
    roles = rewrite.modules
    return ((name, roles.get(f"y{role.removeprefix('x')}", "")) for role, name in roles.items() if role.startswith("x"))


class _Places:
    def __init__(self, model: OnnxModel, view: Traced) -> None:
        graph = model.graph.graph
        self._model, self._graph, self._lifted = model, graph, view.lifted
        self._makers = {str(value.name): node for node in graph for value in node.outputs}
        self.found: dict[str, tuple[Region, ...]] = {}  # by the name of the first y

    def way(self, matches: Sequence[Match]) -> Rewrite | str:
        """The values that the feed-forward network stands between; or why it cannot be taken out of the graph."""
        modules: dict[str, str] = {}
        for number, each in enumerate(matches):
            if VALUE not in each.x.meta or VALUE not in each.y.meta:
                return _FUSED
            if (kind := self._other_kind(each)) is not None:
                return f"its weights are {kind}, and an ONNX file is converted in float32: export the model in float32"
            suffix = f"@{number}" if number else ""
            modules |= {f"x{suffix}": each.x.meta[VALUE], f"y{suffix}": each.y.meta[VALUE]}
        rewrite = Rewrite("graph", modules, channels=matches[0].cone.axis == 1)
        regions = regions_of(self._graph, rewrite)
        if regions is None:
            return _FUSED
        if any(not self._made_by(each) <= one.nodes for each, one in zip(matches, regions)):
            return "its hidden values are used elsewhere"
        self.found[modules["y"]] = regions
        return rewrite

    def _other_kind(self, each: Match) -> str | None:
        """The number type of a weight that is not of float32."""
        tensors = (live_tensor(self._model, path) for p in each.roles.values() for path in p.parameters)
        kinds = (tensor.dtype for tensor in tensors if tensor is not None)
        return next((str(kind).removeprefix("torch.") for kind in kinds if kind != torch.float32), None)

    def _made_by(self, each: Match) -> set[ir.Node]:
        """The nodes that compute something of x for y."""
        names = (node.meta.get(VALUE) for node in each.cone.core if not self._is_constant(node))
        return {self._makers[name] for name in names if name in self._makers}

    def _is_constant(self, node: fx.Node) -> bool:
        """It is computed of weights alone, a transpose of one say."""
        if node.op == "placeholder":
            return node.name in self._lifted
        return bool(node.all_input_nodes) and all(map(self._is_constant, node.all_input_nodes))
