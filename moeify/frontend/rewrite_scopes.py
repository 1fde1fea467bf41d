"""Which modules computed which nodes of a traced graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import fx, nn

from moeify.frontend.cone_ops import is_check
from moeify.frontend.traced import Traced

#: One call of a module: its path, and "@n" behind it for the later calls of a module that is called more than once.
Scope = str


@dataclass(frozen=True, eq=False)
class Scopes:
    """Module calls of a traced graph. `members`: the nodes that compute something in it, nested calls included."""

    model: nn.Module
    traced: Traced
    members: dict[Scope, set[fx.Node]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, traced: Traced) -> Scopes:
        """Reads the module stack of every node."""
        found = cls(model, traced)
        for node in traced.graph.graph.nodes:
            for scope in stack(node):
                if not (is_check(node) and not node.users):
                    found.members.setdefault(scope, set()).add(node)
        return found

    def module(self, scope: Scope) -> nn.Module:
        return self.model.get_submodule(path(scope))

    def plain(self, scope: Scope) -> bool:
        """The module took one positional tensor and gave one tensor whenever it was called."""
        return path(scope) in self.traced.plain_modules

    def paths(self, module: nn.Module) -> list[str]:
        """Every path at which the module object is registered."""
        return [name for name, other in self.model.named_modules(remove_duplicate=False) if other is module]


def stack(node: fx.Node) -> list[Scope]:
    """The module calls around a node, from the whole model inwards. Empty for placeholders and sizes."""
    entries = (node.meta.get("nn_module_stack") or {}).items()
    calls = ((key.partition("@"), entry[0]) for key, entry in entries if not key.startswith("_empty"))
    return [f"{name}{at}{number}" for (_, at, number), name in calls]


def innermost(nodes: Iterable[fx.Node]) -> Scope | None:
    """The innermost module call around all of the nodes (those without a stack left out); None where there is none."""
    stacks = [found for node in nodes if (found := stack(node))]
    if not stacks:
        return None
    shared = [scopes[0] for scopes in zip(*stacks) if len(set(scopes)) == 1]
    return shared[-1] if shared else None


def path(scope: Scope) -> str:
    """The module's path."""
    return scope.partition("@")[0]


def parent(parameter: str) -> str:
    """The path of the module that holds a parameter."""
    return parameter.rpartition(".")[0]


def common_owner(parameters: Iterable[str]) -> str:
    """The path of the deepest module that owns all of them."""
    parts = [parent(parameter).split(".") for parameter in parameters]
    shared = []
    for names in zip(*parts):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return ".".join(shared)
