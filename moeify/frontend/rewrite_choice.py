"""How a found FFN is to be rewritten in the eager model: the first of four ways that keeps everything around it.

See docs/decisions/0001-four-ways-of-rewriting.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import fx

from moeify.frontend.cone import Cone
from moeify.frontend.cone_ops import is_check, is_layout, real_users, shape, stripped
from moeify.frontend.cone_projection import Projection
from moeify.frontend.fingerprint import Fingerprint
from moeify.frontend.rewrite_scopes import Scope, Scopes, common_owner, innermost, parent, path, stack
from moeify.ir.feed_forward import Rewrite


@dataclass(frozen=True, eq=False)
class Match:
    """One call of an FFN: its cone, what it computes, its input and output."""

    cone: Cone
    fingerprint: Fingerprint
    x: fx.Node
    y: fx.Node

    @property
    def roles(self) -> dict[str, Projection]:
        """up, gate (where gated) and down; for a fused projection up and gate are the same."""
        gate = {} if self.fingerprint.gate is None else {"gate": self.fingerprint.gate.projection}
        return {"up": self.fingerprint.up.projection, **gate, "down": self.cone.down}


def choose(matches: Sequence[Match], scopes: Scopes) -> Rewrite | str:
    """The way for an FFN with these calls, the same for all of them; or why there is none.

    Tried in turn: submodule, identity, stash, weights.
    """
    dropout = _combined([node.meta.get("dropout", 0.0) for node in matches[0].cone.nodes])
    for way in (_submodule, _identity, _stash):
        choices = [way(match, scopes, dropout) for match in matches]
        first = choices[0]
        if first is not None and all(choice == first for choice in choices):
            return replace(first, channels=matches[0].cone.axis == 1)
    return _weights(matches[0], dropout)


def _submodule(match: Match, scopes: Scopes, hidden_dropout: float) -> Rewrite | None:
    """One module takes x alone, computes the FFN, then at most a dropout, and nothing else."""
    cone = match.cone
    scope = innermost(cone.core)
    if scope is None or path(scope) == "" or not scopes.plain(scope):
        return None
    members = scopes.members[scope]
    tail, rates, node = set(), [], cone.down.node
    while len(users := list(real_users(node))) == 1 and users[0] in members and is_layout(users[0], cone.axis):
        node = users[0]
        tail.add(node)
        rates.append(node.meta.get("dropout", 0.0))
    allowed = cone.core | tail | {n for n in members if is_layout(n, cone.axis) and stripped(n, cone.axis) is match.x}
    if not members <= allowed or any(user in members for user in node.users):
        return None
    return Rewrite("submodule", {"ffn": path(scope)}, hidden_dropout, _combined(rates))


def _identity(match: Match, scopes: Scopes, hidden_dropout: float) -> Rewrite | None:
    """up, activation and down are modules with nothing between them: the first two become nn.Identity."""
    modules = _projection_modules(match, scopes)
    if modules is None or match.fingerprint.gate is not None or hidden_dropout:
        return None
    between = {node for node in match.cone.nodes if not (is_layout(node, match.cone.axis) and not _reshapes(node))}
    activation = _activation_module(between, match, scopes)
    return (
        None
        if activation is None
        else Rewrite("identity", {"up": modules["up"], "activation": activation, "down": modules["down"]})
    )


def _stash(match: Match, scopes: Scopes, hidden_dropout: float) -> Rewrite | None:
    """up, gate and down are modules; what stands between them runs on zeros."""
    modules = _projection_modules(match, scopes)
    if modules is None:
        return None
    steps = {node for node in match.cone.nodes if not is_layout(node, match.cone.axis)}
    activation = None if match.fingerprint.gate is not None else _activation_module(steps, match, scopes)
    down = modules.pop("down")
    extra = {} if activation is None else {"activation": activation}
    return Rewrite("stash", {**modules, **extra, "down": down}, hidden_dropout)


def _weights(match: Match, hidden_dropout: float) -> Rewrite | str:
    """Some matrix is a bare parameter, or is used past its module; a fused one is named for both of its roles."""
    if match.cone.axis == 1:
        return "its 1x1 convolutions are not done by modules of their own"
    names = {role: p.weight for role, p in match.roles.items()}
    names |= {_bias_role(role): p.bias for role, p in match.roles.items() if p.bias is not None}
    owner = common_owner(names.values())
    start = len(owner) + 1 if owner else 0
    return Rewrite("weights", {"owner": owner} | {role: name[start:] for role, name in names.items()}, hidden_dropout)


def _bias_role(role: str) -> str:
    return "output_bias" if role == "down" else f"{role}_bias"


def _projection_modules(match: Match, scopes: Scopes) -> dict[str, str] | None:
    """Role -> module, where every projection is the whole work of the module that holds its weight."""
    found = {}
    for role, projection in match.roles.items():
        scope = innermost(projection.nodes)
        if scope is None or not scopes.plain(scope) or not scopes.members[scope] <= _own(projection, scopes, scope):
            return None
        if any(scopes.module(scope) is not scopes.model.get_submodule(parent(name)) for name in projection.parameters):
            return None
        found[role] = path(scope)
    return found


def _own(projection: Projection, scopes: Scopes, scope: Scope) -> set[fx.Node]:
    """The projection's nodes and the layout steps around it that its module does."""
    layouts = (node for node in scopes.members[scope] if is_layout(node, projection.axis))
    around = {node for node in layouts if not node.meta.get("dropout")}
    return around | projection.nodes | {node for node in scopes.members[scope] if is_check(node)}


def _activation_module(nodes: set[fx.Node], match: Match, scopes: Scopes) -> str | None:
    """The module that computes exactly these nodes and stands at one place of the model only."""
    nodes = nodes - {node for p in match.roles.values() for node in p.nodes}
    scope = innermost(nodes)
    if (
        scope is None
        or not nodes
        or not scopes.plain(scope)
        or scopes.members[scope] - nodes
        or any(not _in(n, scope) for n in nodes)
    ):
        return None
    return path(scope) if len(scopes.paths(scopes.module(scope))) == 1 else None


def _in(node: fx.Node, scope: Scope) -> bool:
    return scope in stack(node)


def _reshapes(node: fx.Node) -> bool:
    return shape(node) != shape(node.all_input_nodes[0])


def _combined(rates: Sequence[float]) -> float:
    """The probability of one dropout that does what independent ones in a row do."""
    kept = 1.0
    for rate in rates:
        kept *= 1.0 - rate
    return round(1.0 - kept, 9)
