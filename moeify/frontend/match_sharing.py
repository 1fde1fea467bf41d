"""Weights that are used in more than one way, and layers that hold experts already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import fx, nn

from moeify.frontend.cone import Cone
from moeify.frontend.cone_ops import is_check
from moeify.frontend.traced import Traced, live_tensor

_EXPERTS, _SHARED = "experts", "shared_"


@dataclass(frozen=True, eq=False)
class Sharing:
    """Who uses a weight: weight path -> the key of its tensor -> the nodes that read it."""

    keys: dict[str, int]
    readers: dict[int, set[fx.Node]]

    @classmethod
    def of(cls, model: nn.Module, traced: Traced) -> Sharing:
        """Weights are told apart by their tensors: one tensor may have several paths."""
        keys: dict[str, int] = {}
        readers: dict[int, set[fx.Node]] = {}
        for node in traced.graph.graph.nodes:
            if node.op == "placeholder" and node.name in traced.lifted:
                path = traced.lifted[node.name]
                keys[path] = id(live_tensor(model, path))
                readers.setdefault(keys[path], set()).update(user for user in node.users if not is_check(user))
        return cls(keys, readers)

    def reason(self, calls: Sequence[Cone]) -> str | None:
        """Why an FFN with these calls cannot be converted by itself; None where its weights are its own."""
        own = {node for call in calls for p in (call.down, *call.projections) for node in p.nodes}
        cone = calls[0]
        names = [name for p in (cone.down, *cone.projections) for name in p.parameters]
        twice = _repeated([self.keys[name] for name in names])
        for name in names:
            if self.keys[name] in twice or self.readers[self.keys[name]] - own:
                return f"its weights are tied: {name} is used elsewhere too"
        return None


def _repeated(keys: Sequence[int]) -> set[int]:
    return {key for key in keys if keys.count(key) > 1}


@dataclass(frozen=True)
class ExpertLayers:
    """Modules that are a Mixture of Experts already, which are left as they are: path -> why.

    Those with a child named "experts" (a layer: its router, routed and shared experts), and what stands beside one as a shared
    expert of its own (GraniteMoeShared's `shared_mlp`).
    """

    found: Mapping[str, str]

    @classmethod
    def of(cls, model: nn.Module) -> ExpertLayers:
        layers = [path for path, module in model.named_modules() if path and _EXPERTS in dict(module.named_children())]
        parents = {path.rpartition(".")[0] for path in layers}
        shared = [
            f"{parent}.{name}".lstrip(".")
            for parent in parents
            for name, _ in model.get_submodule(parent).named_children()
            if name.startswith(_SHARED)
        ]
        reasons = dict.fromkeys(layers, "it is a Mixture of Experts already")
        return cls(reasons | dict.fromkeys(sorted(shared), "it is the shared expert of a Mixture of Experts"))

    def holds(self, path: str) -> bool:
        """The path lies in such a module: it is an expert, a shared expert or a router."""
        return any(path == layer or path.startswith(layer + ".") for layer in self.found)

    def reasons(self) -> Iterator[tuple[str, str]]:
        """(path, reason), one for each such module."""
        return iter(self.found.items())
