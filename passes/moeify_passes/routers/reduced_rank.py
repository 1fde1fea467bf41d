"""Linear least squares of a given rank, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from moeify_passes.routers.linear_fit import standardisation


class ReducedRankFit:
    """Sums of products over tokens, from which the best linear map of any rank follows (reduced-rank regression, Izenman 1975).

    Inputs are scaled to mean 0 and variance 1; an input that never varies gets weight 0. Memory: inputs x (inputs + outputs).
    """

    def __init__(self, inputs: Tensor, outputs: int) -> None:
        """inputs: [tokens, width], all that will be added. outputs: the width of the targets."""
        self.mean, self.scale = standardisation(inputs)
        width = inputs.shape[1]
        self.gram = torch.zeros(width, width, dtype=torch.float64)
        self.right = torch.zeros(width, outputs, dtype=torch.float64)
        self.total = torch.zeros(outputs, dtype=torch.float64)
        self.shift = torch.zeros(width, dtype=torch.float64)
        self.tokens = 0.0

    def add(self, x: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """x [tokens, width]; targets [tokens, outputs]; weights [tokens]: how much each counts. Products within a chunk are
        made in float32."""
        z = ((x.double() - self.mean) * self.scale).float()
        weighted, counted = (z, torch.ones(len(x))) if weights is None else (z * weights[:, None], weights)
        self.gram += weighted.T @ z
        self.right += weighted.T @ targets
        self.shift += weighted.sum(0, dtype=torch.float64)
        self.total += (targets * counted[:, None]).sum(0, dtype=torch.float64)
        self.tokens += float(counted.sum(dtype=torch.float64))

    def solve(self, rank: int, ridge: float) -> dict[str, Tensor]:
        """weight_in [rank, width], bias_in [rank], weight_out [outputs, rank], bias_out [outputs], float32, for
        (x weight_in^T + bias_in) weight_out^T + bias_out: the least squared error on what was added plus a ridge penalty."""
        shift, centre = self.shift / self.tokens, self.total / self.tokens
        gram = self.gram / self.tokens - torch.outer(shift, shift)
        gram.diagonal().add_(ridge)
        lower = torch.linalg.cholesky(gram)
        image = torch.linalg.solve_triangular(lower, self.right / self.tokens - torch.outer(shift, centre), upper=False)
        basis = torch.linalg.eigh(image @ image.T).eigenvectors[:, -rank:]
        of_scaled = torch.linalg.solve_triangular(lower.T, basis, upper=True)
        inner = of_scaled * self.scale[:, None]
        return {
            "weight_in": inner.T.float().contiguous(),
            "bias_in": (-self.mean @ inner - shift @ of_scaled).float(),
            "weight_out": (image.T @ basis).float().contiguous(),
            "bias_out": centre.float(),
        }
