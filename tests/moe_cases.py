"""Random MoE layers of every shape, as inputs and attributes of the operator: for the reference, eager and ONNX tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from moe_reference import ACTIVATIONS, values


@dataclass(frozen=True)
class Variant:
    """What a case looks like. `lead` are the leading dims of x; `sizes` the rows of each routed expert.

    threshold: put one in the widest gap of the values, so that no rounding decides a choice.
    ties: scores and selection bias are small multiples of 1/4, so that equal values are common (rule `one` only).
    """

    lead: tuple[int, ...] = (5,)
    hidden: int = 6
    output: int = 6
    sizes: tuple[int, ...] = (3, 3, 3, 3)
    shared: int = 0
    activation: str = "gelu"
    gated: bool = False
    up_bias: bool = False
    gate_bias: bool = False
    output_bias: bool = False
    k: int | None = None
    threshold: bool = False
    gate_rule: str = "one"
    normalize: bool = False
    selection_bias: bool = False
    idle: bool = False
    rank: int = 0
    ties: bool = False


@dataclass(frozen=True, eq=False)
class Case:
    """inputs: float32 arrays (offsets int64, k a 0-d int64, threshold a 0-d float32) by the operator's input names, absent
    ones left out. attributes: activation, gate_rule, normalize. `moe(**case.inputs, **case.attributes)` is the truth."""

    variant: Variant
    inputs: dict[str, NDArray[Any]]
    attributes: dict[str, Any]


def random_case(rng: np.random.Generator, variant: Variant | None = None) -> Case:
    """A case with normal weights of a size that keeps h near 1. Default: a variant drawn at random, too."""
    v = random_variant(rng) if variant is None else variant
    rows, experts = v.shared + sum(v.sizes), len(v.sizes)

    def normal(*shape: int, scale: float = 1.0) -> NDArray[Any]:
        return np.asarray(rng.standard_normal(shape) * scale, dtype=np.float32)

    scores, bias = normal(*v.lead, experts), normal(experts, scale=0.3)
    if v.ties:
        scores, bias = np.round(scores * 4) / 4, np.round(bias * 4) / 4
    inputs: dict[str, NDArray[Any] | None] = {
        "x": normal(*v.lead, v.hidden),
        "scores": scores,
        "up": normal(rows, v.hidden, scale=v.hidden**-0.5),
        "down": normal(rows, v.output, scale=rows**-0.5),
        "offsets": np.cumsum([v.shared, *v.sizes], dtype=np.int64),
        "k": None if v.k is None else np.asarray(v.k, dtype=np.int64),
        "threshold": _threshold(scores, bias if v.selection_bias else np.zeros_like(bias), v) if v.threshold else None,
        "gate": normal(rows, v.hidden, scale=v.hidden**-0.5) if v.gated else None,
        "up_bias": normal(rows, scale=0.3) if v.up_bias else None,
        "gate_bias": normal(rows, scale=0.3) if v.gated and v.gate_bias else None,
        "selection_bias": bias if v.selection_bias else None,
        "output_bias": normal(v.output) if v.output_bias else None,
        "idle": normal(experts, v.output, scale=0.3) if v.idle else None,
        "low_rank_in": normal(v.rank, v.hidden, scale=v.hidden**-0.5) if v.rank else None,
        "low_rank_out": normal(v.rank, v.output) if v.rank else None,
    }
    present = {name: value for name, value in inputs.items() if value is not None}
    return Case(v, present, {"activation": v.activation, "gate_rule": v.gate_rule, "normalize": v.normalize})


def _threshold(scores: NDArray[Any], bias: NDArray[Any], v: Variant) -> NDArray[np.float32]:
    """The middle of the widest gap between values, the outer quarters left out; where there are few, near the usual value."""
    flat = scores.reshape(-1, scores.shape[-1]).astype(np.float64)
    c = np.sort(np.concatenate([np.asarray([-0.5, 0.0, 0.25, 1.0]), *(values(s, v.gate_rule) + bias for s in flat)]))
    middle = c[len(c) // 4 : -(len(c) // 4)]
    gap = int(np.argmax(np.diff(middle)))
    return np.asarray((middle[gap] + middle[gap + 1]) / 2, dtype=np.float32)


def random_variant(rng: np.random.Generator) -> Variant:
    """Every option drawn independently of the others."""

    def flip() -> bool:
        return bool(rng.integers(2))

    sizes = (int(rng.integers(1, 6)),) * int(rng.integers(1, 7))
    if flip():
        sizes = tuple(int(size) for size in rng.integers(1, 8, size=len(sizes)))
    rule = str(rng.choice(["one", "softmax", "sigmoid"]))
    return Variant(
        lead=[(5,), (2, 3), (1,), (0,), (2, 1, 4), ()][int(rng.integers(6))],
        hidden=int(rng.integers(1, 9)),
        output=int(rng.integers(1, 9)),
        sizes=sizes,
        shared=int(rng.integers(1, 6)) if flip() else 0,
        activation=str(rng.choice(sorted(ACTIVATIONS))),
        gated=flip(),
        up_bias=flip(),
        gate_bias=flip(),
        output_bias=flip(),
        k=int(rng.integers(1, len(sizes) + 1)) if flip() else None,
        threshold=flip(),
        gate_rule=rule,
        normalize=flip(),
        selection_bias=flip(),
        idle=flip(),
        rank=int(rng.integers(1, 4)) if flip() else 0,
        ties=rule == "one" and flip(),
    )


def cases() -> st.SearchStrategy[Case]:
    """A hypothesis strategy: any case. It shrinks to a seed, which names the case."""
    return st.integers(0, 2**32 - 1).map(lambda seed: random_case(np.random.default_rng(seed)))


#: Caption -> one variant of each thing that a layer can have: what every implementation must pass.
VARIANTS: dict[str, Variant] = {
    "all on": Variant(),
    "all on, gated, biases": Variant(gated=True, activation="silu", up_bias=True, gate_bias=True, output_bias=True),
    "top-2, gate one": Variant(k=2, output_bias=True),
    "top-2, gate one, normalised": Variant(k=2, normalize=True),
    "top-2, ties": Variant(lead=(16,), k=2, ties=True),
    "top-2, softmax": Variant(k=2, gate_rule="softmax"),
    "top-2, softmax, normalised": Variant(k=2, gate_rule="softmax", normalize=True, gated=True),
    "top-2, sigmoid, normalised": Variant(k=2, gate_rule="sigmoid", normalize=True),
    "all on, softmax": Variant(gate_rule="softmax", shared=2, idle=True),
    "all on, gate one, normalised": Variant(normalize=True, up_bias=True),
    "threshold": Variant(threshold=True, output_bias=True),
    "threshold, sigmoid": Variant(threshold=True, gate_rule="sigmoid", shared=2),
    "threshold, softmax, normalised": Variant(threshold=True, gate_rule="softmax", normalize=True),
    "top-2 and threshold": Variant(k=2, threshold=True, gate_rule="sigmoid", gated=True),
    "top-1": Variant(k=1),
    "top-k of all": Variant(k=4, gate_rule="sigmoid"),
    "one expert": Variant(sizes=(5,), k=1, gate_rule="sigmoid"),
    "unequal experts": Variant(sizes=(1, 7, 2, 4), k=2, up_bias=True),
    "shared expert": Variant(shared=5, k=2, up_bias=True, output_bias=True),
    "shared expert, unequal, gated": Variant(
        shared=3, sizes=(2, 5, 1), k=1, gated=True, activation="silu", up_bias=True, gate_bias=True
    ),
    "selection bias": Variant(k=2, selection_bias=True, gate_rule="sigmoid", normalize=True),
    "selection bias, threshold": Variant(threshold=True, selection_bias=True, gate_rule="softmax"),
    "idle vectors": Variant(k=2, idle=True),
    "idle vectors, threshold": Variant(threshold=True, idle=True, output_bias=True, gate_rule="sigmoid"),
    "low rank": Variant(k=1, rank=2),
    "low rank, all on, no bias": Variant(rank=3, gated=True),
    "everything": Variant(
        lead=(2, 4), output=5, sizes=(4, 2, 3, 6), shared=3, activation="gelu-tanh", gated=True, up_bias=True, gate_bias=True,
        output_bias=True, k=3, threshold=True, gate_rule="sigmoid", normalize=True, selection_bias=True, idle=True, rank=2,
    ),
    "three leading dims": Variant(lead=(2, 3, 2), k=2),
    "no leading dim": Variant(lead=(), k=2, gate_rule="softmax"),
    "one token": Variant(lead=(1, 1), k=2, idle=True),
    "no token": Variant(lead=(0,), k=2, idle=True, rank=1, output_bias=True),
    "output wider than hidden": Variant(hidden=4, output=9, k=2),
    "fine experts": Variant(sizes=(1,) * 150, k=40, output_bias=True),
    "fine experts, gates": Variant(sizes=(2,) * 130, k=9, gate_rule="sigmoid", normalize=True, shared=3, idle=True, gated=True),
    "fine experts, threshold, one token": Variant(lead=(1,), sizes=(1, 2, 1) * 50, threshold=True, rank=2, up_bias=True),
    "fine experts, no token": Variant(lead=(0, 3), sizes=(1,) * 140, k=3, shared=2, output_bias=True),
    "fine experts, none on": Variant(lead=(4,), sizes=(1,) * 128, k=1, threshold=True, selection_bias=True),
}  # fmt: skip
VARIANTS |= {f"activation {name}": Variant(activation=name, k=2, shared=2, sizes=(3, 4, 2)) for name in ACTIVATIONS}
