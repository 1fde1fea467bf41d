"""Linear least squares in closed form."""

from __future__ import annotations

import torch
from torch import Tensor


def fit_linear(x: Tensor, targets: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weight [outputs, inputs] and bias [outputs], float32, with the least mean squared error plus a ridge penalty.

    x: [tokens, inputs]. targets: [tokens, outputs]. ridge: penalty on the squared weights for inputs scaled to variance 1.
    Solved in float64 by Cholesky decomposition; an input that never varies gets weight 0.
    """
    mean, scale = standardisation(x)
    width = x.shape[1]
    gram = torch.zeros(width, width, dtype=torch.float64)
    right = torch.zeros(width, targets.shape[1], dtype=torch.float64)
    centre = targets.double().mean(0)
    for chunk, wanted in zip(torch.split(x, 4096), torch.split(targets, 4096)):
        z = (chunk.double() - mean) * scale
        gram += z.T @ z
        right += z.T @ (wanted.double() - centre)
    gram /= len(x)
    gram.diagonal().add_(ridge)
    solution = torch.cholesky_solve(right / len(x), torch.linalg.cholesky(gram)) * scale[:, None]
    return solution.T.float().contiguous(), (centre - mean @ solution).float()


def standardisation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation of each input, float64 [inputs]; the latter is 0 for an input that never varies."""
    mean = x.mean(0, dtype=torch.float64)
    deviation = torch.zeros_like(mean)
    for chunk in torch.split(x, 4096):
        deviation += (chunk.double() - mean).square().sum(0)
    deviation = (deviation / len(x)).sqrt()
    fixed = deviation <= 1e-6 * deviation.max().clamp(min=1e-30)
    return mean, torch.where(fixed, 0.0, 1 / deviation.masked_fill(fixed, 1.0))
