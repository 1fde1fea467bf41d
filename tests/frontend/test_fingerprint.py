"""Activations are named by what they compute, however they are written."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeify.frontend.match import match
from moeify.frontend.trace import trace
from moeify.ir.activations import ACTIVATIONS
from moeify.ir.feed_forward import FeedForward
from zoo import built, values
from zoo_modules import HIDDEN, NEURONS


class Written(nn.Module):
    """down(hidden(a, b)) with two projections a and b of x, b where `gated`."""

    def __init__(self, hidden: Callable[..., Tensor], gated: bool) -> None:
        super().__init__()
        self.a, self.down = nn.Linear(HIDDEN, NEURONS), nn.Linear(NEURONS, HIDDEN)
        self.b = nn.Linear(HIDDEN, NEURONS) if gated else None
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(self.a(x)) if self.b is None else self.hidden(self.a(x), self.b(x))
        y: Tensor = self.down(h)
        return y


def site_of(hidden: Callable[..., Tensor], gated: bool = False) -> FeedForward:
    model = built(lambda: Written(hidden, gated))
    (site,) = match(model, trace(model, (values(5, HIDDEN),))).sites
    return site


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "identity"])
def test_every_activation_of_the_table(name: str) -> None:
    assert site_of(ACTIVATIONS[name]).activation == name


WRITTEN_OUT: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "gelu with erf": ("gelu", lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))),
    "gelu_new": (
        "gelu-tanh",
        lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0)))),
    ),
    "gelu_fast": ("gelu-tanh", lambda x: 0.5 * x * (1 + torch.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x)))),
    "a constant tensor": ("quick-gelu", lambda x: x * torch.sigmoid(torch.tensor(1.702) * x)),
    "swish": ("silu", lambda x: x * torch.sigmoid(x)),
    "relu by clamp": ("relu", lambda x: x.clamp(min=0)),
    "relu by where": ("relu", lambda x: torch.where(x > 0, x, torch.zeros_like(x))),
    "squared relu by product": ("relu-squared", lambda x: F.relu(x) * F.relu(x)),
    "float32 inside": ("silu", lambda x: F.silu(x.double()).to(x.dtype)),
}


@pytest.mark.parametrize("caption", WRITTEN_OUT)
def test_written_out(caption: str) -> None:
    name, hidden = WRITTEN_OUT[caption]
    assert site_of(hidden).activation == name


GATED: dict[str, tuple[str, str, Callable[[Tensor, Tensor], Tensor]]] = {
    "gate first": ("silu", "a.weight", lambda a, b: F.silu(a) * b),
    "gate second": ("gelu", "b.weight", lambda a, b: a * F.gelu(b)),
    "relu gate": ("relu", "b.weight", lambda a, b: F.relu(b) * a),
    "sigmoid gate, written out": ("sigmoid", "a.weight", lambda a, b: b / (1 + torch.exp(-a))),
    "bilinear": ("identity", "a.weight", lambda a, b: a * b),
}


@pytest.mark.parametrize("caption", GATED)
def test_which_branch_is_the_gate(caption: str) -> None:
    name, gate, hidden = GATED[caption]
    site = site_of(hidden, gated=True)
    assert site.gate is not None
    assert (site.activation, site.gate.parameter) == (name, gate)


def test_dropout_on_one_branch_counts_as_hidden_dropout() -> None:
    site = site_of(lambda a, b: F.silu(a) * F.dropout(b, 0.5, False), gated=True)
    assert site.rewrite.hidden_dropout == 0.5


def test_dropouts_in_a_row_are_one() -> None:
    site = site_of(lambda a: F.dropout(F.dropout(F.gelu(a), 0.5, False), 0.2, False))
    assert site.rewrite.hidden_dropout == pytest.approx(0.6)
