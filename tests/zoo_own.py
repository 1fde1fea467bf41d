"""Models of our own for the zoo: name -> builder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from zoo_building import Zoo, built, ids, values
from zoo_convolutions import GatedConvolutions, PositionWise, convolutions
from zoo_modules import HIDDEN, NEURONS, BareBlock, BareFeedForward, InlineBlock, MixerBlock, NanoGPT, Residual, mlp
from zoo_odd_modules import Leaking
from zoo_rows import Site


def _encoder(activation: str, norm_first: bool) -> Zoo:
    def make() -> nn.Module:
        layer = nn.TransformerEncoderLayer(
            HIDDEN, 2, NEURONS, dropout=0.1, activation=activation, batch_first=True, norm_first=norm_first
        )
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    sites = [(f"layers.{i}", "two-matrix", activation, HIDDEN, NEURONS) for i in range(2)]
    return Zoo(built(make), (values(2, 7, HIDDEN),), sites, "stash")


def _nanogpt() -> Zoo:
    sites = [(f"h.{i}.mlp", "two-matrix", "gelu", HIDDEN, NEURONS) for i in range(2)]
    return Zoo(built(NanoGPT), (ids(),), sites, "submodule")


def _inline() -> Zoo:
    sites = [(f"h.{i}", "two-matrix", "quick-gelu", HIDDEN, NEURONS) for i in range(2)]
    return Zoo(built(lambda: NanoGPT(InlineBlock)), (ids(),), sites, "stash")


def _mixer() -> Zoo:
    patches = 9
    model = built(lambda: nn.Sequential(MixerBlock(patches), MixerBlock(patches)))
    names = (("mlp_tokens", patches, 2 * patches), ("mlp_channels", HIDDEN, NEURONS))
    sites = [(f"{i}.{name}", "two-matrix", "gelu", d, n) for i in range(2) for name, d, n in names]
    return Zoo(model, (values(2, patches, HIDDEN),), sites, "submodule")


def _residual_stack() -> Zoo:
    model = built(lambda: nn.Sequential(Residual(mlp()), Residual(mlp()), nn.Linear(HIDDEN, 3)))
    sites = [(f"{i}.inner", "two-matrix", "gelu", HIDDEN, NEURONS) for i in range(2)]
    return Zoo(model, (values(5, HIDDEN),), sites, "submodule")


def _flat_stack() -> Zoo:
    """A plain nn.Sequential: the FFN's three modules are siblings of what stands around them."""

    def make() -> nn.Module:
        parts = (nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, NEURONS), nn.ReLU(), nn.Linear(NEURONS, HIDDEN))
        return nn.Sequential(*parts, nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, 3))

    return Zoo(built(make), (values(5, HIDDEN),), [("3", "two-matrix", "relu", HIDDEN, NEURONS)], "identity")


def _bare() -> Zoo:
    model = built(lambda: nn.Sequential(Residual(BareFeedForward()), Residual(BareFeedForward())))
    sites = [(f"{i}.inner", "gated", "relu-squared", HIDDEN, NEURONS) for i in range(2)]
    return Zoo(model, (values(2, 7, HIDDEN),), sites, "submodule")


def _bare_block() -> Zoo:
    model = built(lambda: nn.Sequential(BareBlock(), BareBlock()))
    sites = [(f"{i}", "two-matrix", "silu", HIDDEN, NEURONS) for i in range(2)]
    return Zoo(model, (values(2, 7, HIDDEN),), sites, "weights")


def _decoder() -> Zoo:
    model = built(lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(HIDDEN, 2, NEURONS, batch_first=True), 2))
    sites: list[Site] = [(f"layers.{i}", "two-matrix", "relu", HIDDEN, NEURONS) for i in range(2)]
    return Zoo(model, (values(2, 7, HIDDEN), values(2, 5, HIDDEN, seed=2)), sites, "stash")


def _plain_mlp() -> Zoo:
    """Wide and narrow in turn: only what widens and narrows again is a feed-forward network."""

    def make() -> nn.Module:
        widths = (HIDDEN, NEURONS, HIDDEN, NEURONS, HIDDEN)
        parts = [part for a, b in zip(widths, widths[1:]) for part in (nn.Linear(a, b), nn.GELU())]
        return nn.Sequential(*parts[:-1])

    sites: list[Site] = [(f"{i}", "two-matrix", "gelu", HIDDEN, NEURONS) for i in (2, 6)]
    return Zoo(built(make), (values(5, HIDDEN),), sites, "identity")


def _shared_hidden() -> Zoo:
    """The second FFN hands its hidden values out: refused in part."""
    model = built(lambda: nn.Sequential(Residual(mlp()), Residual(Leaking())))
    return Zoo(model, (values(2, 7, HIDDEN),), [("0.inner", "two-matrix", "gelu", HIDDEN, NEURONS)], "submodule")


def _conv_2d() -> Zoo:
    model = built(lambda: nn.Sequential(convolutions(), nn.GroupNorm(4, HIDDEN), convolutions()))
    sites: list[Site] = [(f"{i}", "two-matrix", "gelu", HIDDEN, NEURONS) for i in (0, 2)]
    return Zoo(model, (values(2, HIDDEN, 3, 5),), sites, "submodule")


def _conv_1d() -> Zoo:
    model = built(lambda: nn.Sequential(Residual(PositionWise()), Residual(PositionWise())))
    sites: list[Site] = [(f"{i}.inner", "two-matrix", "relu", HIDDEN, NEURONS) for i in range(2)]
    return Zoo(model, (values(2, 7, HIDDEN),), sites, "stash")


def _conv_gated() -> Zoo:
    model = built(lambda: nn.Sequential(GatedConvolutions(), nn.GroupNorm(4, HIDDEN)))
    return Zoo(model, (values(2, HIDDEN, 3, 5),), [("0", "gated", "silu", HIDDEN, NEURONS)], "submodule")


def _builders() -> dict[str, Callable[[], Zoo]]:
    found: dict[str, Callable[[], Zoo]] = {}
    for activation in ("relu", "gelu"):
        for norm in ("pre", "post"):
            found[f"encoder-{norm}-{activation}"] = partial(_encoder, activation, norm == "pre")
    own = (
        _decoder, _nanogpt, _inline, _mixer, _residual_stack, _flat_stack, _plain_mlp, _bare, _bare_block, _shared_hidden,
        _conv_2d, _conv_1d, _conv_gated,
    )  # fmt: skip
    return found | {make.__name__[1:].replace("_", "-"): make for make in own}


OWN = _builders()
