"""Is a cone a feed-forward network, near one, or neither?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, fx

from moeify.frontend.cone import Cone
from moeify.frontend.cone_ops import is_check, is_layout, lead, real_users, stripped
from moeify.frontend.fingerprint import Fingerprint, dropout_commutes, fingerprint
from moeify.frontend.rewrite_scopes import stack

#: Of several obstacles the first of these is named.
_OBSTACLES = ("normalisation", "convolution", "places", "learned vector")


@dataclass(frozen=True)
class No:
    """Not a feed-forward network that can be converted, and why. wrong_size: its sizes speak against it."""

    reason: str
    wrong_size: bool = False


def examined(cone: Cone, weights: Mapping[str, Tensor]) -> Fingerprint | No | None:
    """The cone's fingerprint; or why it is refused; or None for what is not even near a feed-forward network.

    Near is (a) what computes act(x A) B or act(x A) * (x B) C but has the wrong sizes (a pooler with its classifier,
    squeeze-and-excitation), or (b) what has the sizes, hidden -> more neurons -> hidden, with only projections at its
    base, but has something else in between, reads two inputs, or lets others read its hidden values.
    """
    sized = _has_sizes(cone)
    whole = not cone.obstacles and len({stripped(p.x, cone.axis) for p in cone.projections}) == 1 and _even(cone)
    if not sized and not (whole and cone.computes and not _used_elsewhere(cone)):
        return None
    reason = _trouble(cone) if sized else _wrong_size(cone)
    if reason is not None:
        return No(reason, not sized)
    found = fingerprint(cone, weights)
    if isinstance(found, str):
        return No(found)
    if not dropout_commutes(cone, weights):
        return No("a dropout stands in front of its activation")
    return found


def _has_sizes(cone: Cone) -> bool:
    """hidden -> neurons -> hidden, neurons > hidden."""
    hidden, neurons = cone.down.width_out, cone.down.width_in
    return neurons > hidden and bool(cone.branches) and _even(cone) and any(p.width_in == hidden for p in cone.projections)


def _even(cone: Cone) -> bool:
    """Every branch is as wide as the hidden value. (Where hidden values change places widths tell nothing.)"""
    return all(branch.width == cone.down.width_in for branch in cone.branches)


def _wrong_size(cone: Cone) -> str:
    hidden, neurons, output = cone.projections[0].width_in, cone.down.width_in, cone.down.width_out
    if hidden != output:
        return f"its output has {output} values, its input {hidden}"
    return f"its {neurons} neurons are not more than the {hidden} values of its input (a bottleneck)"


def _trouble(cone: Cone) -> str | None:
    """The first thing that no convertible feed-forward network has."""
    weights = [path for p in (*cone.projections, cone.down) for path in p.parameters]
    scopes = [scope for user in _outside_users(cone.core, cone.down.node) for scope in stack(user)]
    if any("lora" in path.lower() for path in (*weights, *scopes)):
        return "it carries LoRA branches: merge them into the weights first (PEFT: merge_and_unload())"
    if any(p.grouped for p in (*cone.projections, cone.down)):
        return "its 1x1 convolutions work on groups of channels"
    for word in _OBSTACLES:
        for text in cone.obstacles:
            if word in text:
                return text
    if len({stripped(p.x, cone.axis) for p in cone.projections}) > 1:
        return "its matrices read two different inputs"
    if _used_elsewhere(cone):
        return "its hidden values are used elsewhere"
    if len(cone.branches) > 2:
        return f"its hidden value combines {len(cone.branches)} projections"
    if not cone.computes:
        return "no activation stands between its matrices"
    return None


def _used_elsewhere(cone: Cone) -> bool:
    return any(True for _ in _outside_users(cone.core, cone.down.node))


def _outside_users(nodes: frozenset[fx.Node], tip: fx.Node) -> Iterator[fx.Node]:
    """Nodes outside that compute something of a value inside, the tip's own users left out."""
    for node in nodes - {tip}:
        for user in node.users:
            if user not in nodes and not (is_check(user) and not user.users):
                yield user


def input_and_output(cone: Cone) -> tuple[fx.Node, fx.Node] | None:
    """The input x and output y with the same leading dims: layout steps around the projections are taken in.

    None where no such pair exists.
    """
    axis = cone.axis
    x, y = stripped(cone.projections[0].x, axis), cone.down.node
    while lead(y, axis) != lead(x, axis):
        users = list(real_users(y))
        if len(users) != 1 or not is_layout(users[0], axis) or users[0].meta.get("dropout"):
            break
        y = users[0]
    if lead(y, axis) == lead(x, axis):
        return x, y
    direct = {p.x for p in cone.projections}
    x, y = cone.projections[0].x, cone.down.node
    return (x, y) if len(direct) == 1 and lead(x, axis) == lead(y, axis) else None
