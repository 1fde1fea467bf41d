"""Which neurons of a layer fire together, seen in an order: what experts are made of should show as blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Runs of neurons along a side of the picture, at most.
BINS = 48


@dataclass(frozen=True)
class CoActivation:
    """How the strengths |h| of neurons go together over tokens, by Pearson's correlation; a neuron with itself is left out.

    bins: means between runs of neighbouring neurons, [bins][bins], None for a run of one neuron with itself. within, between:
    means over pairs of the same group and of different ones; None where there is no such pair. neurons: those that are never
    the same twice; others have no correlation and are left out of all means.
    """

    bins: tuple[tuple[float | None, ...], ...]
    within: float | None
    between: float | None
    neurons: int


def co_activation(h: Tensor, sizes: tuple[int, ...]) -> CoActivation:
    """Of h [tokens, neurons] in the order to be seen, for groups of neighbours of these sizes, which sum to the neurons.

    Never holds neurons x neurons values: sums of correlations are products of sums of standardised strengths.
    """
    z, moving = _standardised(h)
    count = bins_of(sizes)
    edges = torch.linspace(0, h.shape[1], count + 1).round().long()
    picture = _means(*_sums(z, moving, edges))
    groups = torch.tensor((0, *sizes)).cumsum(0)
    sums, live = _sums(z, moving, groups)
    same, same_pairs = float(sums.diagonal().sum() - live.sum()), float((live * (live - 1)).sum())
    every, every_pairs = float(z.sum(1).square().sum() - live.sum()), float(live.sum() * (live.sum() - 1))
    return CoActivation(
        tuple(tuple(None if value != value else value for value in row) for row in picture.tolist()),
        same / same_pairs if same_pairs else None,
        (every - same) / (every_pairs - same_pairs) if every_pairs > same_pairs else None,
        int(live.sum()),
    )


def bins_of(sizes: tuple[int, ...]) -> int:
    """The number of runs: as many a group as fit where groups are alike, so that no run holds neurons of two of them."""
    alike = len(set(sizes)) == 1 and len(sizes) <= BINS
    return min(len(sizes) * min(BINS // len(sizes), sizes[0]) if alike else BINS, sum(sizes))


def dense_order(dense: Tensor, rows: Tensor) -> Tensor | None:
    """The neuron of the dense FFN that each row is, by equal weights: int64 [rows] of [neurons, hidden] and [rows, hidden].

    None where a row is none of them, or two rows are the same one.
    """
    if dense.shape != rows.shape:
        return None
    places: dict[bytes, list[int]] = {}
    for index, key in enumerate(_keys(dense.to(rows.dtype))):
        places.setdefault(key, []).append(index)
    found = [places[key].pop(0) if places.get(key) else -1 for key in _keys(rows)]
    return None if -1 in found else torch.tensor(found)


def _keys(rows: Tensor) -> list[bytes]:
    return [row.tobytes() for row in rows.detach().cpu().contiguous().view(torch.uint8).numpy()]


def _standardised(h: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of |h| with mean 0 and length 1, float64, and which of them move at all; the others are 0."""
    strength = h.abs().double()
    strength = strength - strength.mean(0)
    length = strength.norm(dim=0)
    moving = length > 1e-12 * length.max().clamp_min(1e-300)
    return torch.where(moving, strength / length.where(moving, torch.ones_like(length)), 0.0), moving


def _sums(z: Tensor, moving: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of correlations between runs [runs, runs], a neuron with itself included, and how many neurons of each move."""
    runs = torch.bucketize(torch.arange(z.shape[1]), edges[1:], right=True)
    summed = z.new_zeros(len(z), len(edges) - 1).index_add_(1, runs, z)
    live = z.new_zeros(len(edges) - 1).index_add_(0, runs, moving.double())
    return summed.T @ summed, live


def _means(sums: Tensor, live: Tensor) -> Tensor:
    """[runs, runs]; not a number where there is no pair."""
    pairs = live[:, None] * live - live.diag()
    return torch.where(pairs > 0, (sums - live.diag()) / pairs, torch.nan)
