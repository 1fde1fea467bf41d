"""What is near a feed-forward network and must be left alone comes out with its reason."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeify.frontend.match import Found, match
from moeify.frontend.trace import trace
from traced_zoo import traced_zoo
from zoo import built, values
from zoo_modules import HIDDEN, NEURONS, BareFeedForward, Residual, mlp
from zoo_odd_modules import FeedForward
from zoo_refusals import REFUSALS


def found_in(model: nn.Module, *example: Tensor) -> Found:
    return match(model, trace(model, example))


@pytest.mark.parametrize("caption", REFUSALS)
def test_refusal(caption: str) -> None:
    case = REFUSALS[caption]()
    found = found_in(case.model, *case.example)
    assert [(r.path, r.reason) for r in found.refusals] == case.refusals
    assert found.sites == ()


def test_attention_is_not_near() -> None:
    for name in ("nanogpt", "llama", "encoder-pre-gelu"):
        assert traced_zoo(name)[2].refusals == ()


def test_a_pooler_with_its_classifier_is_refused() -> None:
    refusals = traced_zoo("bert")[2].refusals
    assert [(r.path, r.reason) for r in refusals] == [("classifier", "its output has 2 values, its input 16")]


def test_experts_of_a_mixture_are_refused_once_a_layer() -> None:
    for name in ("mixtral", "qwen2-moe"):
        refusals = traced_zoo(name)[2].refusals
        assert [(r.path, r.reason) for r in refusals] == [("model.layers.0.mlp", "it is a Mixture of Experts already")]


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
