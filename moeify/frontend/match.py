"""Finding the feed-forward networks of a traced model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from moeify.frontend.cone import Cone, cone
from moeify.frontend.cone_linear import projections
from moeify.frontend.cone_ops import is_check
from moeify.frontend.match_checks import No, examined, input_and_output
from moeify.frontend.match_sharing import ExpertLayers, Sharing
from moeify.frontend.match_site import feed_forward, module_path
from moeify.frontend.rewrite_choice import Match, choose
from moeify.frontend.rewrite_scopes import Scopes, parent
from moeify.frontend.traced import Traced
from moeify.ir.feed_forward import FeedForward, Refusal, Rewrite

__all__ = ["Call", "Found", "Ways", "match"]


@dataclass(frozen=True, eq=False)
class Call:
    """One place of the graph where a site runs.

    x: the node of its input, [..., hidden]. y: the node of its output, [..., output], output bias included, with the same
    leading dims. inside: all nodes strictly between, to be left out when the FFN is replaced. channels: the features stand
    in dim 1 instead, [batch, hidden, ...].
    """

    x: fx.Node
    y: fx.Node
    inside: frozenset[fx.Node]
    channels: bool = False


@dataclass(frozen=True, eq=False)
class Found:
    """What a model holds: sites in execution order of their first calls, near matches that were refused, and the calls of
    every site by its path."""

    sites: tuple[FeedForward, ...]
    refusals: tuple[Refusal, ...]
    calls: Mapping[str, tuple[Call, ...]]


#: How an FFN with these calls is rewritten, or why it cannot be.
Ways = Callable[[Sequence[Match]], Rewrite | str]


def match(model: nn.Module, traced: Traced, ways: Ways | None = None) -> Found:
    """All feed-forward networks of the traced model, and those near it with the reason why they are left alone.

    From the input of each projection the graph is walked backwards through steps that treat every value for itself, down
    to projections; what lies between is computed on a grid to name the activation and the gate. What is near a
    feed-forward network is said at `match_checks.examined`. A site's FFN takes hidden values and gives as many back, with
    more neurons than that; its weights are used nowhere else.

    ways: of a host that is no eager module; None: those of `rewrite_choice`.
    """
    experts = ExpertLayers.of(model)
    refused: dict[Refusal, Cone | None] = {Refusal(path, reason): None for path, reason in experts.reasons()}
    groups: dict[tuple[object, ...], list[Match]] = {}
    values = {name: traced.lifted_value(model, name) for name in (*traced.lifted, *traced.constants)}
    for found in _cones(model, traced, values):
        path = module_path(found)
        if experts.holds(path):
            continue
        verdict = examined(found, values)
        ends = input_and_output(found)
        if isinstance(verdict, No):
            refused[Refusal(path, verdict.reason)] = found if verdict.wrong_size else None
        elif verdict is not None and ends is None:
            refused[Refusal(path, "its output has other leading sizes than its input")] = None
        elif verdict is not None and ends is not None:
            groups.setdefault(_identity(found), []).append(Match(found, verdict, *ends))
    return _found(model, traced, list(groups.values()), refused, ways or _eager_ways(model, traced))


def _eager_ways(model: nn.Module, traced: Traced) -> Ways:
    scopes = Scopes.of(model, traced)
    return lambda matches: choose(matches, scopes)


def _found(
    model: nn.Module, traced: Traced, groups: Sequence[list[Match]], refused: dict[Refusal, Cone | None], ways: Ways
) -> Found:
    """Sites and refusals of what was matched; a refusal for its size alone that shares weights with a site is dropped."""
    sharing = Sharing.of(model, traced)
    kept: list[tuple[list[Match], Rewrite]] = []
    for matches in groups:
        reason = sharing.reason([m.cone for m in matches])
        way = ways(matches) if reason is None else reason
        if isinstance(way, Rewrite):
            kept.append((matches, way))
        else:
            refused[Refusal(module_path(matches[0].cone), way)] = None
    used = {name for matches, _ in kept for name in _weights(matches[0].cone)}
    refusals = [r for r, wrong_size in refused.items() if wrong_size is None or not used & _weights(wrong_size)]
    paths = _unique_paths(kept)
    sites = tuple(feed_forward(model, path, matches, way) for path, (matches, way) in zip(paths, kept))
    calls = {path: tuple(_call(m) for m in matches) for path, (matches, _) in zip(paths, kept)}
    return Found(sites, tuple(refusals), calls)


def _cones(model: nn.Module, traced: Traced, values: Mapping[str, Tensor]) -> list[Cone]:
    found = projections(traced, model)
    return [c for down in found.values() if (c := cone(down, found, values)) is not None and c.branches]


def _identity(found: Cone) -> tuple[object, ...]:
    """Equal for the calls of one shared FFN."""
    return (found.down.weight, *((b.projection.weight, b.start, b.stop) for b in found.branches))


def _weights(found: Cone) -> set[str]:
    return {found.down.weight, *(p.weight for p in found.projections)}


def _unique_paths(kept: Sequence[tuple[list[Match], Rewrite]]) -> list[str]:
    """The FFN's module; of two FFNs in one module (or where that is the whole model), the modules of their second matrices, or
    those matrices themselves."""
    downs = [matches[0].cone.down.weight for matches, _ in kept]
    chosen = [module_path(matches[0].cone) for matches, _ in kept]
    for names in ([parent(down) for down in downs], downs):
        chosen = [name if chosen.count(path) > 1 or not path else path for path, name in zip(chosen, names)]
    return chosen


def _call(found: Match) -> Call:
    inside = set(found.cone.core)
    for p in found.cone.projections:
        node = p.x
        while node is not found.x:
            inside.add(node)
            node = node.all_input_nodes[0]
    node = found.y
    while node is not found.cone.down.node:
        inside.add(node)
        node = node.all_input_nodes[0]
    inside |= {user for node in inside - {found.y} for user in node.users if is_check(user) and not user.users}
    return Call(found.x, found.y, frozenset(inside - {found.y}), found.cone.axis == 1)
