"""What a cone computes, found by computing it: the name of its activation, and which branch is the gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from moeify.frontend.cone import Branch, Cone
from moeify.frontend.cone_ops import is_layout, op_name
from moeify.ir.activations import ACTIVATIONS

#: Relative to 1 + |value|. Constants written with 8 digits pass; `gelu` and `gelu-tanh` differ by 5e-4.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Fingerprint:
    """The hidden value is activation(up), or activation(gate) * up."""

    activation: str
    up: Branch
    gate: Branch | None


def fingerprint(cone: Cone, weights: Mapping[str, Tensor]) -> Fingerprint | str:
    """The activation by name and the roles of the branches, or, in words, why there is none.

    The cone's values are computed in float64 on a grid with negative, zero and large inputs (for two branches on all
    pairs) and compared with every activation of `moeify.ir.activations`. weights: single values by placeholder.
    """
    if len(cone.branches) == 1:
        (up,) = cone.branches
        grid = _grid()
        hidden = evaluate(cone, {up: grid}, weights)
        name = _named(grid, hidden)
        if name is None:
            return f"its activation is not in the table: {_samples(cone, up, weights)}"
        return Fingerprint(name, up, None)
    a, b = _grid()[:, None], _grid()[None, :]
    first, second = cone.branches
    hidden = evaluate(cone, {first: a, second: b}, weights)
    for gate, up, values, other in ((first, second, a, b), (second, first, b, a)):
        ones = evaluate(cone, {gate: values, up: torch.ones_like(values)}, weights)
        name = _named(values, ones)
        if name is not None and _close(hidden, ACTIVATIONS[name](values) * other):
            return Fingerprint(name, up, gate)
    return "its hidden value is no product of one branch and a known activation of the other"


def dropout_commutes(cone: Cone, weights: Mapping[str, Tensor]) -> bool:
    """Scaling what its dropouts hand on scales the hidden value: they may be applied to the hidden value instead."""
    grids = [_grid() + 0.37 * i for i in range(len(cone.branches))]
    values = dict(zip(cone.branches, grids))
    scale = 2.0 ** sum(bool(node.meta.get("dropout")) for node in cone.nodes)
    return _close(evaluate(cone, values, weights, kept=2.0), scale * evaluate(cone, values, weights))


def evaluate(cone: Cone, values: Mapping[Branch, Tensor], weights: Mapping[str, Tensor], kept: float = 1.0) -> Tensor:
    """The hidden value for given branch values, float64 tensors of any shapes that broadcast.

    kept: the factor by which a live dropout multiplies what it keeps.
    """
    done: dict[fx.Node, Any] = {node: weights[node.name].detach().double().reshape(()) for node in cone.constants}
    for node, branches in cone.sources.items():
        parts = [values[branch] for branch in branches]
        done[node] = parts[0] if len(parts) == 1 else parts[0] * torch.sigmoid(parts[1])
    todo = [cone.down.x]
    while todo:
        node = todo[-1]
        waiting = [
            n for n in (node.all_input_nodes[:1] if is_layout(node, cone.axis) else node.all_input_nodes) if n not in done
        ]
        if node in done or not waiting:
            todo.pop()
            if node not in done:
                done[node] = _step(node, done, kept, cone.axis)
        todo.extend(waiting if node not in done else [])
    result: Tensor = done[cone.down.x]
    return result


def _step(node: fx.Node, done: Mapping[fx.Node, Any], kept: float, axis: int) -> Any:
    if is_layout(node, axis):
        return done[node.all_input_nodes[0]] * (kept if node.meta.get("dropout") else 1.0)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: done[n])
    assert callable(node.target), op_name(node)
    return node.target(*args, **kwargs)


def _grid() -> Tensor:
    """[points] float64, negative, zero and large."""
    far = torch.tensor([-1000.0, -100.0, -30.0, 30.0, 100.0, 1000.0], dtype=torch.float64)
    return torch.cat([torch.linspace(-12, 12, 97, dtype=torch.float64), far])


def _named(inputs: Tensor, outputs: Tensor) -> str | None:
    return next((name for name, function in ACTIVATIONS.items() if _close(outputs, function(inputs))), None)


def _close(a: Tensor, b: Tensor) -> bool:
    return bool(torch.all((a - b).abs() <= _TOLERANCE * (1 + b.abs())))


def _samples(cone: Cone, up: Branch, weights: Mapping[str, Tensor]) -> str:
    points = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    values = evaluate(cone, {up: points}, weights).expand(5)
    return ", ".join(f"f({point:g}) = {value:.4g}" for point, value in zip(points.tolist(), values.tolist()))
