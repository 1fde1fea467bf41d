"""Convolutions are feed-forward networks where they see one place at a time, and are left alone where they see more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeify.frontend.match import Found, match
from moeify.frontend.trace import trace
from zoo import built, values
from zoo_modules import HIDDEN, NEURONS


def found_in(make: Callable[[], nn.Module], *example: Tensor) -> Found:
    model = built(make)
    return match(model, trace(model, example))


def _stack(first: nn.Module, second: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Identity(), nn.Sequential(first, nn.ReLU(), second))


#: caption, the two convolutions over a picture
NEAR: list[tuple[str, Callable[[], nn.Module]]] = [
    ("a larger kernel", lambda: _stack(nn.Conv2d(HIDDEN, NEURONS, 3, padding=1), nn.Conv2d(NEURONS, HIDDEN, 1))),
    ("a stride going in", lambda: _stack(nn.Conv2d(HIDDEN, NEURONS, 1, stride=2), nn.Conv2d(NEURONS, HIDDEN, 1))),
    ("a stride going out", lambda: _stack(nn.Conv2d(HIDDEN, NEURONS, 1), nn.Conv2d(NEURONS, HIDDEN, 1, stride=(1, 2)))),
    ("padding", lambda: _stack(nn.Conv2d(HIDDEN, NEURONS, 1, padding=1), nn.Conv2d(NEURONS, HIDDEN, 1))),
    ("a transposed convolution", lambda: _stack(nn.ConvTranspose2d(HIDDEN, NEURONS, 1), nn.Conv2d(NEURONS, HIDDEN, 1))),
]


@pytest.mark.parametrize("make", [make for _, make in NEAR], ids=[caption for caption, _ in NEAR])
def test_what_sees_more_than_one_place_is_not_found(make: Callable[[], nn.Module]) -> None:
    assert found_in(make, values(2, HIDDEN, 4, 6)).sites == ()


#: caption, the network, the dims after batch and channels
DIMS: list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]] = [
    ("conv1d", lambda: _stack(nn.Conv1d(HIDDEN, NEURONS, 1), nn.Conv1d(NEURONS, HIDDEN, 1, bias=False)), (5,)),
    ("conv2d", lambda: _stack(nn.Conv2d(HIDDEN, NEURONS, 1, padding="same"), nn.Conv2d(NEURONS, HIDDEN, 1)), (4, 6)),
    ("conv3d", lambda: _stack(nn.Conv3d(HIDDEN, NEURONS, 1), nn.Conv3d(NEURONS, HIDDEN, (1, 1, 1))), (2, 3, 4)),
]


@pytest.mark.parametrize(("make", "dims"), [case[1:] for case in DIMS], ids=[case[0] for case in DIMS])
def test_places_of_any_number_of_dims(make: Callable[[], nn.Module], dims: tuple[int, ...]) -> None:
    (site,) = found_in(make, values(2, HIDDEN, *dims)).sites
    assert (site.path, site.hidden, site.neurons, site.rewrite.way) == ("1", HIDDEN, NEURONS, "submodule")
    assert site.rewrite.channels


class SizesAlike(nn.Module):
    """Channels that are as many as places: only dim 1 is cut and projected."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv1d(HIDDEN, 2 * NEURONS, 1), nn.Conv1d(NEURONS, HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.glu(self.up(x), dim=1))
        return y


def test_features_are_told_from_places_of_the_same_number() -> None:
    (site,) = found_in(lambda: nn.Sequential(nn.Identity(), SizesAlike()), values(2, HIDDEN, NEURONS)).sites
    assert (site.kind, site.activation, site.hidden, site.neurons) == ("gated", "sigmoid", HIDDEN, NEURONS)


class CutOverPlaces(SizesAlike):
    """Half of the places gate the other half: no feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Conv1d(HIDDEN, NEURONS, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.up(x).chunk(2, dim=2)
        y: Tensor = self.down(torch.sigmoid(a) * b)
        return y


def test_a_cut_over_places_is_none_of_the_features() -> None:
    assert found_in(lambda: nn.Sequential(nn.Identity(), CutOverPlaces()), values(2, HIDDEN, 8)).sites == ()


class BareKernels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.zeros(NEURONS, HIDDEN, 1)), nn.Parameter(torch.zeros(HIDDEN, NEURONS, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + F.conv1d(F.relu(F.conv1d(x, self.up)), self.down)


def test_bare_kernels_are_refused() -> None:
    found = found_in(lambda: nn.Sequential(nn.Identity(), BareKernels()), values(2, HIDDEN, 5))
    reasons = [(r.path, r.reason) for r in found.refusals]
    assert (found.sites, reasons) == ((), [("1", "its 1x1 convolutions are not done by modules of their own")])
