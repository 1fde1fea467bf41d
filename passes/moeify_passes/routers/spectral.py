"""The router that bounds what an expert's neurons can say by a few projections of the token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.activations import activation
from moeify.ir.facts import ActivationSample, Fact
from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.ir.moe_spec import MoESpec, Router
from moeify.pipeline.context import PassContext
from moeify_passes.expert_rows import expert_rows
from moeify_passes.held_site import token_chunks
from moeify_passes.routers.held_out import held_out


@dataclass(frozen=True)
class Spectral:
    """Scores an expert by a low-rank bound on the sum of its |h_i|.

    By Cauchy and Schwarz sum |act(g_i x)(u_i x)| <= ||act(G_e x)|| ||U_e x||. The activation becomes a weight of each row,
    the root of the mean of (act(z) / z)^2 over the sample (sigmoid(z)^2 for SiLU); then both matrices are cut to the
    directions in which the sample's inputs give most. A two-matrix FFN has the one norm. Biases are left out.

    rank: projections an expert and matrix; each costs one row of weights. whiten: directions are chosen for the inputs of the
    sample, else for inputs of equal variance in all directions (better where a threshold chooses).
    """

    rank: int = 32
    whiten: bool = True

    kind: ClassVar[str] = "spectral"
    needs: ClassVar[tuple[type[Fact], ...]] = (ActivationSample,)
    uses: ClassVar[tuple[type[Fact], ...]] = ()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"spectral.rank is {self.rank}: choose 1 or more")

    def shape(self, config: MoEConfig) -> RouterConfig:
        """The router's shape in front of a layer of that shape; no more projections than the largest expert has neurons."""
        return RouterConfig("spectral", width=min(self.rank, config.hidden, max(config.sizes)), gated=config.gated)

    def route(self, site: FeedForward, spec: MoESpec, context: PassContext) -> Router:
        """The router for the spec's experts: up, gate [experts * rank, hidden]."""
        x, _ = held_out(site, context.get(site, ActivationSample).inputs, context.generator("held-out", site))
        rows, config = expert_rows(site, spec), self.shape(spec.config(site))
        root = _root(x) if self.whiten else torch.eye(site.hidden, dtype=torch.float64)
        folded = _row_weights(site.activation, rows.tensors, x)
        assert config.width is not None
        tensors = {}
        for name in ("up", "gate") if site.gated else ("up",):
            matrix = rows.tensors[name].double()
            matrix = matrix * folded[:, None] if name == "gate" or not site.gated else matrix
            parts = (matrix[a:b] for a, b in zip(rows.offsets, rows.offsets[1:]))
            tensors[name] = torch.cat([_cut(part, root, config.width) for part in parts]).float()
        return Router(config, tensors)


def _root(x: Tensor) -> Tensor:
    """L, lower triangular, with L L^T the second moment of x [tokens, hidden] and a little on its diagonal; float64."""
    moment = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for chunk in torch.split(x, 4096):
        moment += chunk.double().T @ chunk.double()
    moment /= len(x)
    moment.diagonal().add_(1e-4 * float(moment.diagonal().mean()) + 1e-30)
    root: Tensor = torch.linalg.cholesky(moment)
    return root


def _row_weights(name: str, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    """The root of the mean of (act(z) / z)^2 for the key of each row, float64 [rows]."""
    keys, act = tensors.get("gate", tensors["up"]), activation(name)
    total = torch.zeros(len(keys), dtype=torch.float64)
    for chunk in token_chunks(x, len(keys)):
        z = chunk @ keys.T
        z = torch.where(z.abs() < 1e-6, 1e-6, z)
        total += (act(z) / z).square().sum(0, dtype=torch.float64)
    return (total / len(x)).sqrt()


def _cut(matrix: Tensor, root: Tensor, rank: int) -> Tensor:
    """Rows B [rank, hidden] for which ||B x|| is nearest to ||matrix x|| in the mean; zeros where the matrix has fewer."""
    _, values, right = torch.linalg.svd(matrix @ root, full_matrices=False)
    kept = values[:rank, None] * right[:rank]
    found = torch.linalg.solve_triangular(root, kept, upper=False, left=False)
    return torch.cat((found, found.new_zeros(rank - len(found), found.shape[1])))
