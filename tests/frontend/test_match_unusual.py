"""Feed-forward networks written in unusual ways are found, and told apart from what stands around them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeify.frontend.match import Found, match
from moeify.frontend.trace import trace
from zoo import built, values
from zoo_modules import HIDDEN, NEURONS, BareFeedForward, Residual, mlp
from zoo_odd_modules import FeedForward


def found_in(model: nn.Module, *example: Tensor) -> Found:
    return match(model, trace(model, example))


class Channels(nn.Module):
    """RWKV's channel mixing: an FFN of a mixed x, its output weighed by a gate of another x."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.value = nn.Linear(HIDDEN, NEURONS, bias=False), nn.Linear(NEURONS, HIDDEN, bias=False)
        self.receptance = nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        before = F.pad(x, (0, 0, 1, -1))
        y: Tensor = torch.sigmoid(self.receptance(x)) * self.value(F.relu(self.key(0.5 * x + 0.5 * before)).square())
        return y


def test_a_gate_behind_the_ffn_is_none_of_its_business() -> None:
    found = found_in(built(lambda: nn.Sequential(Residual(Channels()))), values(2, 7, HIDDEN))
    (site,) = found.sites
    assert (site.path, site.activation, site.rewrite.way) == ("0.inner", "relu-squared", "stash")
    assert found.refusals == ()


class TwoInOne(nn.Module):
    """Two FFNs in one module, written inline."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.a, self.b = nn.Linear(HIDDEN, NEURONS), nn.Linear(NEURONS, HIDDEN)
        self.c, self.d = nn.Linear(HIDDEN, NEURONS), nn.Linear(NEURONS, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.b(F.relu(self.a(x))))
        y: Tensor = x + self.d(F.gelu(self.c(x)))
        return y


def test_two_ffns_in_one_module_are_told_apart() -> None:
    found = found_in(built(lambda: nn.Sequential(TwoInOne())), values(2, 7, HIDDEN))
    assert [(s.path, s.activation) for s in found.sites] == [("0.b", "relu"), ("0.d", "gelu")]


def test_two_ffns_in_a_row_do_not_refuse_each_other() -> None:
    """Between them stands a matrix pair neurons -> hidden -> neurons, which is no near match of its own."""
    found = found_in(built(lambda: nn.Sequential(mlp(), nn.ReLU(), mlp())), values(5, HIDDEN))
    assert [s.path for s in found.sites] == ["0", "2"]
    assert found.refusals == ()


class Glued(nn.Module):
    """F.glu over one fused projection, used past its module."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(HIDDEN, 2 * NEURONS), nn.Linear(NEURONS, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.glu(self.both(x)))
        return y


def test_glu() -> None:
    model = built(lambda: nn.Sequential(Residual(Glued())))
    x = values(5, HIDDEN)
    (site,) = found_in(model, x).sites
    assert (site.activation, site.gated, site.neurons) == ("sigmoid", True, NEURONS)
    inner = model.get_submodule("0.inner")
    torch.testing.assert_close(site.forward(x), inner(x), rtol=1e-5, atol=1e-5)


class Einsum(nn.Module):
    """Bare matrices, multiplied with einsum, biases added in steps of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.zeros(HIDDEN, NEURONS)), nn.Parameter(torch.zeros(NEURONS))
        self.w2, self.b2 = nn.Parameter(torch.zeros(HIDDEN, NEURONS)), nn.Parameter(torch.zeros(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(torch.einsum("btd,dn->btn", x, self.w1) + self.b1)
        return torch.einsum("btn,dn->btd", h, self.w2) + self.b2


def test_einsum_with_added_biases() -> None:
    model = built(lambda: nn.Sequential(Residual(Einsum())))
    x = values(2, 7, HIDDEN)
    (site,) = found_in(model, x).sites
    assert site.up_bias is not None
    assert site.output_bias is not None
    inner = model.get_submodule("0.inner")
    torch.testing.assert_close(site.forward(x.reshape(-1, HIDDEN)), inner(x).reshape(-1, HIDDEN), rtol=1e-5, atol=1e-5)


def test_a_module_with_two_arguments_is_not_replaced_as_a_whole() -> None:
    class TwoArguments(FeedForward):
        def forward(self, x: Tensor, unused: Tensor | None = None) -> Tensor:
            return super().forward(x)

    class Caller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ffn = TwoArguments()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = x + self.ffn(x, x)
            return y

    (site,) = found_in(built(Caller), values(2, 7, HIDDEN)).sites
    assert (site.path, site.rewrite.way) == ("ffn", "stash")


def test_a_shared_activation_module_is_left_in_place() -> None:
    activation = nn.ReLU()
    model = built(
        lambda: nn.Sequential(
            nn.Linear(HIDDEN, NEURONS), activation, nn.Linear(NEURONS, HIDDEN), activation, nn.Linear(HIDDEN, 3)
        )
    )
    (site,) = found_in(model, values(5, HIDDEN)).sites
    assert (site.rewrite.way, dict(site.rewrite.modules)) == ("stash", {"up": "0", "down": "2"})


def test_no_ffn_at_all() -> None:
    found = found_in(nn.Linear(3, 3).eval(), values(5, 3))
    assert (found.sites, found.refusals, dict(found.calls)) == ((), (), {})


def test_bare_parameters_in_a_module_of_their_own_are_replaced_as_a_module() -> None:
    (site,) = found_in(built(lambda: nn.Sequential(Residual(BareFeedForward()))), values(2, 7, HIDDEN)).sites
    assert site.rewrite.modules == {"ffn": "0.inner"}
    assert (site.up.transposed, site.down.transposed) == (True, False)


class ReadsSizes(FeedForward):
    """The hidden value's own sizes shape the output."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.up(x)).reshape(-1, NEURONS)
        y: Tensor = self.down(h)
        return y.reshape(x.shape[0], h.shape[0] // x.shape[0], HIDDEN)


class Flattened(nn.Module):
    """Works on [tokens, hidden] inside, as a block of a [batch, tokens, hidden] model."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, NEURONS), nn.Linear(NEURONS, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.norm(x).view(-1, HIDDEN)
        h = F.relu(self.up(flat))
        y: Tensor = x + self.down(h).view(x.shape)
        return y * h.shape[0]


@pytest.mark.parametrize("make", [Flattened, ReadsSizes])
def test_sizes_of_hidden_values_are_no_use_of_them(make: type[nn.Module]) -> None:
    found = found_in(built(lambda: nn.Sequential(nn.LayerNorm(HIDDEN), make())), values(2, 7, HIDDEN))
    (call,) = found.calls[found.sites[0].path]
    assert found.refusals == ()
    assert call.x.meta["val"].shape[:-1] == call.y.meta["val"].shape[:-1]
