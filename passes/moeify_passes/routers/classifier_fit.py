"""A small MLP fitted by binary cross-entropy on relative mass (MoEfication, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class ClassifierFit:
    """How long and in what steps Adam goes on."""

    epochs: int
    batch: int
    learning_rate: float


def fit_classifier(
    fit: ClassifierFit, learn: tuple[Tensor, Tensor], judge: tuple[Tensor, Tensor], centres: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """weight_in [experts, hidden] and weight_out [experts, experts] of weight_out tanh(weight_in u).

    learn, judge: u [tokens, hidden] of norm 1, and the mass of each expert [tokens, experts]. centres: where weight_in starts;
    weight_out starts as the identity. Works inside torch.inference_mode.
    """
    with torch.inference_mode(False), torch.enable_grad():
        start = (centres.clone(), torch.eye(len(centres)))
        parameters = [value.clone().requires_grad_() for value in start]
        optimizer = torch.optim.Adam(parameters, lr=fit.learning_rate)
        best, most = [value.detach().clone() for value in parameters], -1.0
        for _ in range(fit.epochs):
            order = torch.randperm(len(learn[0]), generator=generator)
            for rows in torch.split(order, fit.batch):
                u, mass = learn[0][rows], learn[1][rows]
                target = mass / mass.max().clamp(min=torch.finfo(torch.float32).tiny)
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(_predict(parameters, u), target).backward()  # type: ignore[no-untyped-call]  # torch
                optimizer.step()
            captured = _captured(parameters, judge)
            if captured > most:
                best, most = [value.detach().clone() for value in parameters], captured
    return {"weight_in": best[0], "weight_out": best[1]}


def _predict(parameters: list[Tensor], u: Tensor) -> Tensor:
    return F.linear(torch.tanh(F.linear(u, parameters[0])), parameters[1])


@torch.no_grad()
def _captured(parameters: list[Tensor], judge: tuple[Tensor, Tensor]) -> float:
    """The share of all mass that the best-scored fifth of the experts holds."""
    scores, mass = _predict(parameters, judge[0]), judge[1]
    chosen = scores.topk(max(1, mass.shape[1] // 5), dim=1).indices
    return float(mass.gather(1, chosen).sum() / mass.sum().clamp(min=torch.finfo(torch.float32).tiny))
