"""`moeify::QMoE` of docs/moe-layer.md in float64 NumPy: the weights restored, and what a kernel of 8 bits makes of them.

Like moe_reference.py it imports nothing of moeify.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np

from moe_cases import Case
from moe_reference import ACTIVATIONS, Array, Float, moe, route

MATRICES = ("up", "down", "gate")


def stored(matrix: Array, bits: int) -> tuple[Array, Array]:
    """The integers and the scales of a matrix [rows, width]; in 4 bits the width is a multiple of 32."""
    parts = matrix.astype(np.float64).reshape(len(matrix), -1 if bits == 4 else 1, 32 if bits == 4 else matrix.shape[1])
    largest, middle = (7, 8) if bits == 4 else (127, 128)
    scale = np.abs(parts).max(axis=-1, initial=0.0) / largest
    whole = np.rint(parts / np.where(scale == 0, 1, scale)[..., None]).reshape(matrix.shape) + middle
    whole = whole.astype(np.uint8)
    return (whole[:, ::2] + 16 * whole[:, 1::2] if bits == 4 else whole), scale.astype(np.float32)


def restored(integers: Array, scale: Array, bits: int) -> Float:
    """Of uint8 [rows, width * bits / 8] and float32 [rows, blocks] the weights [rows, width]."""
    if bits == 8:
        return (integers.astype(np.float64) - 128) * scale
    rows, width = len(integers), 2 * integers.shape[1]
    weights = np.zeros((rows, width))
    weights[:, 0::2] = integers % 16
    weights[:, 1::2] = integers // 16
    return (weights - 8) * np.repeat(scale.astype(np.float64), 32, axis=1)


def quantised(case: Case, bits: int) -> Case:
    """The same case with its matrices stored as integers."""
    inputs, more = dict(case.inputs), {}
    for name in MATRICES:
        if name in inputs:
            inputs[name], more[f"{name}_scale"] = stored(inputs[name], bits)
    return replace(case, inputs=inputs | more, attributes=case.attributes | {"bits": bits})


def in_floats(case: Case) -> Case:
    """A quantised case as the one of `moeify::MoE` that it stands for; weights in float64."""
    inputs, attributes = dict(case.inputs), dict(case.attributes)
    bits = attributes.pop("bits")
    for name in MATRICES:
        if name in inputs:
            inputs[name] = restored(inputs[name], inputs.pop(f"{name}_scale"), bits)
    return replace(case, inputs=inputs, attributes=attributes)


def qmoe(case: Case) -> Float:
    """y of a quantised case."""
    plain = in_floats(case)
    return moe(**cast(dict[str, Any], plain.inputs | plain.attributes))


def rounded(values: Float) -> Float:
    """Values as whole multiples of the 127th part of the largest."""
    step = np.abs(values).max(initial=0.0) / 127
    return np.rint(values / step) * step if step else np.zeros_like(values)


def qmoe_of_integers(case: Case) -> Float:
    """y of a case of 8 bits where x and hidden values are rounded to 8 bits, too, as docs/moe-layer.md lets a kernel do."""
    plain = in_floats(case)
    i, scale = plain.inputs, case.inputs["down_scale"].astype(np.float64)[:, 0]
    k, threshold, bias = i.get("k"), i.get("threshold"), i.get("selection_bias")
    rule = {name: plain.attributes[name] for name in ("gate_rule", "normalize")}
    chosen, gates = route(i["scores"], k, threshold, bias, **rule)
    act, offsets = ACTIVATIONS[plain.attributes["activation"]], i["offsets"]
    runs = [(0, int(offsets[0])), *((int(a), int(b)) for a, b in zip(offsets, offsets[1:]))]
    none = {name: np.zeros_like(i[name]) for name in ("up", "down")}
    rest = {n: a for n, a in i.items() if n in ("idle", "low_rank_in", "low_rank_out", "output_bias")}
    y = moe(i["x"], i["scores"], none["up"], none["down"], offsets, k, threshold, None, None, None, bias,
            **cast(dict[str, Any], rest | plain.attributes | {"activation": "identity"}))  # fmt: skip
    for token in np.ndindex(i["x"].shape[:-1]):
        x = rounded(i["x"][token].astype(np.float64))
        for run, (first, last) in enumerate(runs):
            if run and not chosen[token][run - 1]:
                continue
            u = i["up"][first:last] @ x + i.get("up_bias", np.zeros(len(i["up"])))[first:last]
            if "gate" in i:
                g = i["gate"][first:last] @ x + i.get("gate_bias", np.zeros(len(i["up"])))[first:last]
            h = act(g) * u if "gate" in i else act(u)
            t = h * scale[first:last] * (gates[token][run - 1] if run else 1.0)
            whole = case.inputs["down"][first:last].astype(np.float64) - 128
            y[token] += rounded(t) @ whole
    return y
