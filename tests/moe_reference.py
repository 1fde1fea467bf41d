"""docs/moe-layer.md in float64 NumPy: one token after the other, one expert after the other. Slow and obviously right.

It judges the eager layer, the operator and every ONNX lowering, so it imports nothing of moeify.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[Any]
Float = NDArray[np.float64]

ACTIVATIONS: dict[str, Callable[[Float], Float]] = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0.0),
    "relu6": lambda x: np.clip(x, 0.0, 6.0),
    "relu-squared": lambda x: np.maximum(x, 0.0) ** 2,
    "leaky-relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "leaky-relu-0.1": lambda x: np.where(x > 0, x, 0.1 * x),
    "leaky-relu-0.5-squared": lambda x: np.where(x > 0, x, 0.5 * x) ** 2,
    "gelu": lambda x: 0.5 * x * (1.0 + special.erf(x / np.sqrt(2.0))),
    "gelu-tanh": lambda x: 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))),
    "quick-gelu": lambda x: x * special.expit(1.702 * x),
    "silu": lambda x: x * special.expit(x),
    "mish": lambda x: x * np.tanh(np.logaddexp(0.0, x)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0.0))),
    "softplus": lambda x: np.logaddexp(0.0, x),
    "softsign": lambda x: x / (1.0 + np.abs(x)),
    "tanh": np.tanh,
    "sigmoid": special.expit,
    "hard-sigmoid": lambda x: np.clip(x + 3.0, 0.0, 6.0) / 6.0,
    "hard-swish": lambda x: x * np.clip(x + 3.0, 0.0, 6.0) / 6.0,
}


def values(s: Float, gate_rule: str) -> Float:
    """v [experts] of one token's scores s [experts]."""
    if gate_rule == "one":
        return s
    if gate_rule == "softmax":
        return np.asarray(special.softmax(s))
    if gate_rule == "sigmoid":
        return np.asarray(special.expit(s))
    raise ValueError(gate_rule)


def scores(
    x: Float,
    t: dict[str, Float],
    *,
    kind: str,
    activation: str = "identity",
    output: str = "identity",
    unit_input: bool = False,
) -> Float:
    """s [experts] of one token x [hidden] by a router with tensors t."""
    act = ACTIVATIONS[activation]
    x = x / np.sqrt(sum(x * x)) if unit_input else x

    def project(name: str, bias: str) -> Float:
        return np.array([sum(row * x) for row in t[name]]) + t.get(bias, 0.0)

    if kind in ("linear", "average-key"):
        s = project("weight", "bias")
    elif kind == "mlp":
        s = t["weight_out"] @ act(project("weight_in", "bias_in")) + t.get("bias_out", 0.0)
    elif kind == "neuron":
        s = act(project("gate", "gate_bias")) * project("up", "up_bias") if "gate" in t else act(project("up", "up_bias"))
    elif kind == "spectral":
        s = np.array([np.sqrt(sum(part**2)) for part in project("up", "").reshape(int(t["experts"]), -1)])
        if "gate" in t:
            s = s * np.array([np.sqrt(sum(part**2)) for part in project("gate", "").reshape(int(t["experts"]), -1)])
    else:
        raise ValueError(kind)
    s = s if output == "identity" else np.abs(s)
    return np.asarray(s / s.max() if output == "relative" else s)


def choose(c: Float, k: int | None, threshold: float | None) -> NDArray[np.bool_]:
    """Which experts of one token are chosen, [experts], from c [experts]."""
    chosen = np.ones(len(c), dtype=bool)
    if k is not None:
        order = sorted(range(len(c)), key=lambda e: (-c[e], e))
        chosen[order[k:]] = False
    if threshold is not None:
        chosen &= c >= threshold
    return chosen


def route(
    scores: Array,
    k: Any = None,
    threshold: Any = None,
    selection_bias: Array | None = None,
    *,
    gate_rule: str = "one",
    normalize: bool = False,
) -> tuple[NDArray[np.bool_], Float]:
    """The chosen sets (bool) and the gates (0 where not chosen), both [..., experts], of scores [..., experts]."""
    k = None if k is None else int(k)
    threshold = None if threshold is None else float(np.float32(threshold))
    bias = np.zeros(scores.shape[-1]) if selection_bias is None else selection_bias.astype(np.float64)
    chosen = np.zeros(scores.shape, dtype=bool)
    gates = np.zeros(scores.shape)
    for token in np.ndindex(scores.shape[:-1]):
        v = values(scores[token].astype(np.float64), gate_rule)
        chosen[token] = choose(v + bias, k, threshold)
        g = np.ones_like(v) if gate_rule == "one" else v
        g = np.where(chosen[token], g, 0.0)
        total = g.sum()
        gates[token] = g / total if normalize and total != 0 else g
    return chosen, gates


def composed(
    core: dict[str, Array], own: dict[str, Array], kind: str, *, rank: int = 0, alpha: float = 0.0
) -> dict[str, Float]:
    """Composed rows as plain ones: up, down and what else the core has, [runs * neurons, ...] in float64.

    core and own: the tensors of the core and of every run, by their names without the prefixes `core.`, `residual.`, `lora.`.
    """
    runs = len(next(iter(own.values())))
    rows: dict[str, list[Float]] = {name: [] for name in core}
    for run in range(runs):
        for name, dense in core.items():
            added = np.zeros(dense.shape)
            if kind == "residual":
                added = own[name][run].astype(np.float64)
            elif dense.ndim == 2:
                delta = own[f"{name}_b"][run].astype(np.float64) @ own[f"{name}_a"][run].astype(np.float64)
                added = (alpha / rank) * (delta.T if name == "down" else delta)
            rows[name].append(dense.astype(np.float64) + added)
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def moe(
    x: Array,
    scores: Array,
    up: Array,
    down: Array,
    offsets: Array,
    k: Any = None,
    threshold: Any = None,
    gate: Array | None = None,
    up_bias: Array | None = None,
    gate_bias: Array | None = None,
    selection_bias: Array | None = None,
    output_bias: Array | None = None,
    idle: Array | None = None,
    low_rank_in: Array | None = None,
    low_rank_out: Array | None = None,
    *,
    activation: str,
    gate_rule: str = "one",
    normalize: bool = False,
) -> Float:
    """y [..., output] in float64. Inputs and attributes are those of the operator, by name; any float dtype."""
    chosen, gates = route(scores, k, threshold, selection_bias, gate_rule=gate_rule, normalize=bool(normalize))
    act = ACTIVATIONS[activation]

    def rows(x: Float, first: int, last: int) -> Float:
        """The sum of h_i(x) down_i over rows first .. last, [output]."""
        u = up[first:last].astype(np.float64) @ x
        u = u if up_bias is None else u + up_bias[first:last]
        if gate is None:
            h = act(u)
        else:
            g = gate[first:last].astype(np.float64) @ x
            h = act(g if gate_bias is None else g + gate_bias[first:last]) * u
        return np.asarray(h @ down[first:last].astype(np.float64))

    y = np.zeros((*x.shape[:-1], down.shape[1]))
    for token in np.ndindex(x.shape[:-1]):
        one = x[token].astype(np.float64)
        y[token] += rows(one, 0, offsets[0])
        for e in range(len(offsets) - 1):
            if chosen[token][e]:
                y[token] += gates[token][e] * rows(one, offsets[e], offsets[e + 1])
            elif idle is not None:
                y[token] += idle[e].astype(np.float64)
        if low_rank_in is not None and low_rank_out is not None:
            y[token] += (low_rank_in.astype(np.float64) @ one) @ low_rank_out.astype(np.float64)
        if output_bias is not None:
            y[token] += output_bias.astype(np.float64)
    return y


def smear(
    x: Array,
    scores: Array,
    up: Array,
    down: Array,
    offsets: Array,
    gate: Array | None = None,
    up_bias: Array | None = None,
    gate_bias: Array | None = None,
    output_bias: Array | None = None,
    low_rank_in: Array | None = None,
    low_rank_out: Array | None = None,
    *,
    activation: str,
    counts: NDArray[np.bool_] | None = None,
) -> Float:
    """y [sequences, tokens, output] of x [sequences, tokens, hidden]: one merged expert a sequence; counts [sequences, tokens]:
    which tokens have a say in it."""
    y = np.zeros((*x.shape[:2], down.shape[1]))
    for sequence in range(len(x)):
        mean = np.zeros(scores.shape[-1])
        heard = [t for t in range(x.shape[1]) if counts is None or counts[sequence, t]]
        for t in heard:
            mean += special.softmax(scores[sequence, t].astype(np.float64)) / len(heard)

        def merged(rows: Array | None, mean: Float = mean) -> Array | None:
            """The rows of the shared expert, then one expert's."""
            if rows is None:
                return None
            experts = [rows[a:b].astype(np.float64) for a, b in zip(offsets, offsets[1:])]
            return np.concatenate([rows[: offsets[0]], sum(p * expert for p, expert in zip(mean, experts))])

        y[sequence] = moe(
            x[sequence], np.zeros((x.shape[1], 1)), np.asarray(merged(up)), np.asarray(merged(down)), offsets[:2],
            gate=merged(gate), up_bias=merged(up_bias), gate_bias=merged(gate_bias), output_bias=output_bias,
            low_rank_in=low_rank_in, low_rank_out=low_rank_out, activation=activation,
        )  # fmt: skip
    return y
