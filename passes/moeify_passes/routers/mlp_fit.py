"""A small multi-layer perceptron, fitted by Adam with early stopping."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from moeify.ir.activations import activation
from moeify_passes.routers.linear_fit import standardisation

_BATCH = 256
_CHECK_EVERY = 50
_PATIENCE = 10


@dataclass(frozen=True)
class MlpShape:
    """abs(act(z weight_in^T + bias_in) weight_out^T + bias_out): D2DMoE's router (section 3.2), with biases."""

    width: int
    activation: str
    steps: int
    learning_rate: float


def fit_mlp(
    shape: MlpShape, fit: tuple[Tensor, Tensor], check: tuple[Tensor, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """weight_in [width, inputs], bias_in, weight_out [outputs, width], bias_out with the least mean squared error on `check`.

    fit, check: x [tokens, inputs] and targets [tokens, outputs], to learn from and to stop by. Inputs are scaled to mean 0 and
    variance 1 and targets to mean 1 while fitting; the result takes them as they are. Works inside torch.inference_mode.
    """
    with torch.inference_mode(False), torch.enable_grad():
        mean, scale = (value.float() for value in standardisation(fit[0]))
        unit = float(fit[1].mean().clamp(min=1e-30))
        learn, judge = (((x - mean) * scale, targets / unit) for x, targets in (fit, check))
        found = _descend(shape, learn, judge, _start(shape, learn, generator), generator)
    weight_in = found[0] * scale
    return {
        "weight_in": weight_in,
        "bias_in": found[1] - weight_in @ mean,
        "weight_out": found[2] * unit,
        "bias_out": found[3] * unit,
    }


def _start(shape: MlpShape, data: tuple[Tensor, Tensor], generator: torch.Generator) -> list[Tensor]:
    """Small random weights; the first prediction is near the mean target."""
    inputs, outputs = data[0].shape[1], data[1].shape[1]
    weight_in = torch.randn(shape.width, inputs, generator=generator) / inputs**0.5
    weight_out = torch.randn(outputs, shape.width, generator=generator) * (0.1 / shape.width**0.5)
    return [weight_in, torch.zeros(shape.width), weight_out, data[1].mean(0)]


def _predict(parameters: list[Tensor], act: str, x: Tensor) -> Tensor:
    hidden = activation(act)(F.linear(x, parameters[0], parameters[1]))
    return F.linear(hidden, parameters[2], parameters[3]).abs()


def _descend(
    shape: MlpShape, learn: tuple[Tensor, Tensor], judge: tuple[Tensor, Tensor], start: list[Tensor], generator: torch.Generator
) -> list[Tensor]:
    """The parameters that did best on `judge`."""
    parameters = [value.clone().requires_grad_() for value in start]
    optimizer = torch.optim.Adam(parameters, lr=shape.learning_rate)
    best, least, waited = start, float("inf"), 0
    for step in range(shape.steps + 1):
        if step % _CHECK_EVERY == 0 or step == shape.steps:
            with torch.no_grad():
                loss = float(F.mse_loss(_predict(parameters, shape.activation, judge[0]), judge[1]))
            waited = 0 if loss < least else waited + 1
            if loss < least:
                best, least = [p.detach().clone() for p in parameters], loss
            if waited == _PATIENCE or step == shape.steps:
                break
        rows = torch.randint(len(learn[0]), (_BATCH,), generator=generator)
        optimizer.zero_grad()
        F.mse_loss(_predict(parameters, shape.activation, learn[0][rows]), learn[1][rows]).backward()  # type: ignore[no-untyped-call]  # torch
        optimizer.step()
    return best
