"""A matched FFN as a FeedForward: lazy handles to its weights in neuron-major form."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from moeify.data.mapped_pages import let_go
from moeify.errors import InputError
from moeify.frontend.cone import Branch, Cone
from moeify.frontend.cone_projection import Projection
from moeify.frontend.rewrite_choice import Match
from moeify.frontend.rewrite_scopes import common_owner, innermost, parent, path
from moeify.frontend.traced import live_tensor
from moeify.ir.feed_forward import FeedForward, Rewrite, Weight


def feed_forward(model: nn.Module, name: str, matches: Sequence[Match], rewrite: Rewrite) -> FeedForward:
    """The site; its handles read the live model."""
    first = matches[0]
    up, gate, down = first.fingerprint.up, first.fingerprint.gate, first.cone.down
    return FeedForward(
        path=name,
        activation=first.fingerprint.activation,
        hidden=up.projection.width_in,
        neurons=down.width_in,
        output=down.width_out,
        up=_matrix(model, up),
        down=_down(model, down),
        rewrite=rewrite,
        gate=None if gate is None else _matrix(model, gate),
        up_bias=_bias(model, up),
        gate_bias=None if gate is None else _bias(model, gate),
        output_bias=None if down.bias is None else Weight(down.bias, (down.width_out,), partial(_live, model)),
        calls=len(matches),
    )


def module_path(cone: Cone) -> str:
    """The path of the deepest module that computes all of it, or owns all its matrices where that is deeper (a model may
    call a layer's `forward` itself); where that is the whole model, the second matrix's module."""
    scope = path(innermost(cone.core) or "")
    weights = {cone.down.weight, *(p.weight for p in cone.projections)}
    owner = common_owner(weights) if len(weights) > 1 else ""
    return (owner if owner.startswith(f"{scope}." if scope else "") else scope) or parent(cone.down.weight)


def _matrix(model: nn.Module, branch: Branch) -> Weight:
    """[neurons, hidden]"""
    p = branch.projection
    return Weight(p.weight, (branch.width, p.width_in), partial(_live, model), _rows(branch), p.in_out, _left)


def _down(model: nn.Module, p: Projection) -> Weight:
    """[neurons, output]"""
    return Weight(p.weight, (p.width_in, p.width_out), partial(_live, model), None, not p.in_out, _left)


def _bias(model: nn.Module, branch: Branch) -> Weight | None:
    """[neurons]"""
    p = branch.projection
    return None if p.bias is None else Weight(p.bias, (branch.width,), partial(_live, model), _rows(branch))


def _rows(branch: Branch) -> tuple[int, int] | None:
    return (branch.start, branch.stop) if branch.fused else None


def _left(values: Tensor) -> None:
    let_go((values,))


def _live(model: nn.Module, path: str) -> Tensor:
    value = live_tensor(model, path)
    if value is None:
        raise InputError(f"the model has no parameter {path} any more: its feed-forward network was converted already")
    return value
