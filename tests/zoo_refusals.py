"""Small networks near a feed-forward network that must be left alone, each with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from zoo import built, values
from zoo_modules import HIDDEN, NEURONS, Residual, mlp
from zoo_odd_modules import (
    ConvolutionInside,
    EarlyDropout,
    Leaking,
    LearnedScale,
    LoRA,
    NoActivation,
    NormInside,
    NormWrittenOut,
    OwnExperts,
    SqueezeExcite,
    SumOfBranches,
    ThreeBranches,
    Tied,
    TiedToEmbedding,
    TwoInputs,
    UnknownActivation,
)


@dataclass(frozen=True)
class Refused:
    """A model, its example, and the refusals that must come out: (path, reason)."""

    model: nn.Module
    example: tuple[Tensor, ...]
    refusals: list[tuple[str, str]]


def _inside(inner: Callable[[], nn.Module], reason: str, tokens: int = 9) -> Refused:
    return Refused(built(lambda: nn.Sequential(Residual(inner()))), (values(2, tokens, HIDDEN),), [("0.inner", reason)])


def _convolutions() -> Refused:
    model = built(lambda: nn.Sequential(nn.Conv2d(HIDDEN, NEURONS, 1, groups=2), nn.GELU(), nn.Conv2d(NEURONS, HIDDEN, 1)))
    return Refused(model, (values(2, HIDDEN, 3, 3),), [("2", "its 1x1 convolutions work on groups of channels")])


def _classifier() -> Refused:
    model = built(lambda: nn.Sequential(nn.Linear(9, NEURONS), nn.ReLU(), nn.Linear(NEURONS, 4)))
    return Refused(model, (values(5, 9),), [("2", "its output has 4 values, its input 9")])


def _tied_to_embedding() -> Refused:
    reason = "its weights are tied: table.weight is used elsewhere too"
    return Refused(built(TiedToEmbedding), (values(2, 7, HIDDEN), torch.arange(6).reshape(2, 3)), [("ffn", reason)])


_SAMPLES = "f(-2) = -0.9093, f(-1) = -0.8415, f(0) = 0, f(1) = 0.8415, f(2) = 0.9093"
_BOTTLENECK = "its 4 neurons are not more than the 16 values of its input (a bottleneck)"
_CASES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "tied weights": (Tied, "its weights are tied: 0.inner.up.weight is used elsewhere too"),
    "hidden value used elsewhere": (Leaking, "its hidden values are used elsewhere"),
    "normalisation inside": (NormInside, "a normalisation stands between its matrices"),
    "normalisation written out": (NormWrittenOut, "a normalisation stands between its matrices"),
    "depthwise convolution inside": (ConvolutionInside, "a convolution stands between its matrices"),
    "two inputs": (TwoInputs, "its matrices read two different inputs"),
    "three branches": (ThreeBranches, "its hidden value combines 3 projections"),
    "unknown activation": (UnknownActivation, f"its activation is not in the table: {_SAMPLES}"),
    "sum of branches": (SumOfBranches, "its hidden value is no product of one branch and a known activation of the other"),
    "no activation": (NoActivation, "no activation stands between its matrices"),
    "dropout before the activation": (EarlyDropout, "a dropout stands in front of its activation"),
    "learned scale inside": (LearnedScale, "a learned vector stands between its matrices"),
    "LoRA branch": (LoRA, "it carries LoRA branches: merge them into the weights first (PEFT: merge_and_unload())"),
    "squeeze and excite": (SqueezeExcite, _BOTTLENECK),
    "bottleneck": (lambda: mlp(HIDDEN, 4), _BOTTLENECK),
    "own experts": (OwnExperts, "it is a Mixture of Experts already"),
}

#: Caption -> builder.
REFUSALS: Mapping[str, Callable[[], Refused]] = MappingProxyType(
    {caption: (lambda make=make, reason=reason: _inside(make, reason)) for caption, (make, reason) in _CASES.items()}
    | {"grouped convolutions": _convolutions, "plain classifier": _classifier, "tied to an embedding": _tied_to_embedding}
)
