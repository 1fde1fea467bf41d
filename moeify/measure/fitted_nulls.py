"""What one layer is measured against, fitted on a sample of its inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from moeify.ir.moe_config import MoEConfig
from moeify.ir.token_weights import damped
from moeify.measure.dense_ffn import DenseFFN
from moeify.measure.linear_term import LinearTerm, linear_term
from moeify.measure.random_experts import RandomExperts, random_experts
from moeify.measure.static_mask import StaticMask, static_mask

#: y [tokens, output] of x [tokens, hidden] and h [tokens, neurons], the outputs of all neurons of the dense FFN.
FromHidden = Callable[[Tensor, Tensor], Tensor]

#: Tokens computed together.
_CHUNK = 256


@dataclass(frozen=True, eq=False)
class FittedNulls:
    """The nulls that are made of the dense FFN, at the active fraction of a layer, and the term that would stand in for what
    the layer leaves idle. term_fraction: the weights of the term / those of the dense FFN."""

    static: StaticMask
    random: RandomExperts
    term: LinearTerm
    term_fraction: float


def fit_nulls(
    ffn: DenseFFN, config: MoEConfig, inputs: Tensor, fraction: float, built: FromHidden, generator: torch.Generator
) -> FittedNulls:
    """inputs: [tokens, hidden] of the FFN, 1 or more. fraction: the active fraction of the layer. built: what it computes."""
    mean, second = (torch.zeros(ffn.neurons, dtype=torch.float64) for _ in range(2))
    missing, squares = [], []
    weight = ffn.rows.up
    for x in token_runs(inputs.to(weight.device, weight.dtype)):
        h = ffn.hidden(x)
        mean += h.sum(0, dtype=torch.float64).cpu()
        second += h.float().square().sum(0, dtype=torch.float64).cpu()
        y = ffn.output(h)
        missing.append((y - built(x, h)).float())
        squares.append(squared_outputs(ffn, y))
    count = len(inputs)
    term = linear_term(inputs.to(weight.device), torch.cat(missing), damped(torch.cat(squares)))
    return FittedNulls(
        static_mask(ffn, mean / count, second / count, fraction),
        random_experts(ffn, config.experts, config.shared / config.rows, fraction, generator),
        term,
        term.matrix.numel() / (ffn.neurons * ffn.row),
    )


def squared_outputs(ffn: DenseFFN, y: Tensor) -> Tensor:
    """|y|^2 of dense outputs y [tokens, output] without the output bias, float32 [tokens]."""
    own = 0.0 if ffn.output_bias is None else ffn.output_bias.float()
    return (y.float() - own).square().sum(-1)


def token_runs(inputs: Tensor) -> Iterator[Tensor]:
    """Inputs [tokens, hidden] in runs of a few hundred tokens."""
    return iter(torch.split(inputs, _CHUNK))


def generator_of(seed: int, path: str) -> torch.Generator:
    """Depends on seed and path alone."""
    digest = hashlib.sha256(f"{seed}/random-partition/{path}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
