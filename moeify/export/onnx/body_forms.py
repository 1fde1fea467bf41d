"""The chosen experts as ONNX operations, in each form (moeify.export.onnx.forms): what they add to y."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from moeify.export.onnx.body_contrib import contrib_operator
from moeify.export.onnx.body_experts import expert_of_row, hidden_values
from moeify.export.onnx.body_shape import BodyShape
from moeify.export.onnx.forms import Form, Kind
from moeify.export.onnx.operations import Operations

if TYPE_CHECKING:
    import onnx_ir as ir

    Values = dict[str, ir.Value]

FLOAT, INT64 = 1, 7  # of TensorProto.DataType


@dataclass(frozen=True, eq=False)
class Chosen:
    """v: the node's inputs. rows: the row-wise weights of all routed experts. integers: of them what is stored as such, with
    scales; nothing where floats serve. on [tokens, experts] bool, gate likewise float32 (None: 1 where on)."""

    v: Values
    rows: Values
    integers: Values
    on: ir.Value
    gate: ir.Value | None


def routed_experts(op: Operations, shape: BodyShape, form: Form, chosen: Chosen) -> ir.Value:
    """The sum of the experts that are on, [tokens, output]."""
    many = KINDS[form.many]
    if form.few is None:
        return many(op, shape, form.size, chosen)
    few = KINDS[form.few]
    tokens = op("Squeeze", op("Shape", chosen.v["x"], end=1))
    return op.choose(
        op("LessOrEqual", tokens, op.constant(form.few_tokens)),
        lambda branch: few(branch, shape, form.size, chosen),
        lambda branch: many(branch, shape, form.size, chosen),
    )


def _unrolled(op: Operations, shape: BodyShape, size: int, chosen: Chosen) -> ir.Value:
    """Each expert on its tokens only; one that no token chose works on zero rows. Split lets a runtime that folds constants
    keep one (prepacked) matrix an expert and no copy of the whole. Added one after the other: a token twice in one ScatterND
    would be a race between threads."""
    v, experts = chosen.v, shape.experts
    by_expert = op("Transpose", chosen.on, perm=[1, 0])
    pairs = op("NonZero", by_expert)  # [2, pairs], sorted by expert, then by token
    counts = op("ReduceSum", op("Cast", chosen.on, to=INT64), op.constant([0]), keepdims=0)
    token = op("Gather", pairs, op.constant(1), axis=0)
    tokens = op.several(experts, "Split", op("Unsqueeze", token, op.constant([1])), counts, axis=0)
    inputs = op.several(experts, "Split", op("Gather", v["x"], token, axis=0), counts, axis=0)
    weights: list[ir.Value] = []
    if chosen.gate is not None:
        flat = op("Compress", op("Transpose", chosen.gate, perm=[1, 0]), op("Reshape", by_expert, op.constant([-1])))
        weights = op.several(experts, "Split", op("Unsqueeze", flat, op.constant([1])), counts, axis=0)
    starts = op("Slice", v["offsets"], op.constant([0]), op.constant([-1]))
    sizes = op("Sub", op("Slice", v["offsets"], op.constant([1]), op.constant([experts + 1])), starts)
    runs = {name: op.several(experts, "Split", rows, sizes, axis=0) for name, rows in chosen.rows.items()}
    y = op.full(0.0, op("Concat", op("Shape", v["x"], end=1), op("Shape", v["down"], start=1), axis=0))
    for e in range(experts):
        h = hidden_values(op, shape, inputs[e], {name: run[e] for name, run in runs.items()})
        part = op("MatMul", op("Mul", h, weights[e]) if weights else h, runs["down"][e])
        y = op("ScatterND", y, tokens[e], part, reduction="add")
    return y


def _gathered(op: Operations, shape: BodyShape, size: int, chosen: Chosen) -> ir.Value:
    """The rows of experts that any token chose, for all tokens."""
    used = op("ReduceMax", op("Cast", chosen.on, to=FLOAT), op.constant([0]), keepdims=0)
    used = op("Greater", used, op.constant(0.0))
    if size:  # whole experts
        places = columns = op("Squeeze", op("NonZero", used), op.constant([0]))
        rows = {name: _runs(op, shape, w, places, size) for name, w in chosen.rows.items()}
    else:
        expert = _expert_of_routed_row(op, shape, chosen)
        places = op("Squeeze", op("NonZero", op("Gather", used, expert, axis=0)), op.constant([0]))
        columns = op("Gather", expert, places, axis=0)
        rows = {name: op("Gather", w, places, axis=0) for name, w in chosen.rows.items()}
    h = hidden_values(op, shape, chosen.v["x"], rows)
    return _scaled_out(op, h, op("Gather", _factor(op, chosen), columns, axis=1), size, rows["down"])


def _runs(op: Operations, shape: BodyShape, w: ir.Value, experts: ir.Value, size: int) -> ir.Value:
    """The rows w of those experts, gathered in whole runs: [len(experts) * size, ...]."""
    rest = op("Shape", w, start=1)
    runs = op("Reshape", w, op("Concat", op.constant([shape.experts, size]), rest, axis=0))
    dims = op("Concat", op("Mul", op("Shape", experts), op.constant(size)), rest, axis=0)
    return op("Reshape", op("Gather", runs, experts, axis=0), dims, allowzero=1)


def _masked(op: Operations, shape: BodyShape, size: int, chosen: Chosen) -> ir.Value:
    """All rows, in place: dense, with h scaled by the gate of the row's expert."""
    h, factor = hidden_values(op, shape, chosen.v["x"], chosen.rows), _factor(op, chosen)
    if not size:
        factor = op("Gather", factor, _expert_of_routed_row(op, shape, chosen), axis=1)
    return _scaled_out(op, h, factor, size, chosen.rows["down"])


def _scaled_out(op: Operations, h: ir.Value, factor: ir.Value, size: int, down: ir.Value) -> ir.Value:
    """(h factor) down, for h [tokens, rows] and a factor for each row (size 0) or each `size` rows."""
    if size > 1:
        parted = op("Reshape", h, op("Concat", op("Shape", factor), op.constant([size]), axis=0), allowzero=1)
        scaled = op("Mul", parted, op("Unsqueeze", factor, op.constant([2])))
        return op("MatMul", op("Reshape", scaled, op("Shape", h), allowzero=1), down)
    return op("MatMul", op("Mul", h, factor), down)


def _contrib(op: Operations, shape: BodyShape, size: int, chosen: Chosen) -> ir.Value:
    return contrib_operator(op, shape, size, chosen.v["x"], chosen.rows | chosen.integers, _factor(op, chosen))


def _factor(op: Operations, chosen: Chosen) -> ir.Value:
    """By what h is multiplied, [tokens, experts]: the gate, 0 where the expert is off."""
    return op("Cast", chosen.on, to=FLOAT) if chosen.gate is None else chosen.gate


def _expert_of_routed_row(op: Operations, shape: BodyShape, chosen: Chosen) -> ir.Value:
    """[routed rows] int64: 0 for rows of the first expert."""
    expert = op("Sub", expert_of_row(op, chosen.v), op.constant(1))
    if not shape.shared:
        return expert
    return op("Slice", expert, op("Gather", chosen.v["offsets"], op.constant([0])), op.constant([2**62]))


KINDS: Mapping[Kind, Callable[[Operations, BodyShape, int, Chosen], ir.Value]] = MappingProxyType(
    {"unrolled": _unrolled, "gathered": _gathered, "masked": _masked, "contrib": _contrib}
)
