"""Small random models with example inputs and the feed-forward networks that are to be found in them.

    zoo = ZOO["llama"]()
    zoo.model(**zoo.example) or zoo.model(*zoo.example)     see `run`

Every call builds a new model from the same seed; the global generator is left as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

import zoo_huggingface
from zoo_modules import HIDDEN, NEURONS, BareBlock, BareFeedForward, InlineBlock, MixerBlock, NanoGPT, Residual, mlp

#: path, kind, activation, hidden, neurons
Site = tuple[str, str, str, int, int]


@dataclass(frozen=True)
class Zoo:
    """A model in eval mode, an example batch, the sites in execution order, how each is to be rewritten."""

    model: nn.Module
    example: tuple[Any, ...] | dict[str, Any]
    sites: list[Site] = field(default_factory=list)
    way: str = ""

    def run(self, batch: tuple[Any, ...] | dict[str, Any] | None = None) -> Any:
        """The model's own output for the batch (default: the example), without gradients."""
        batch = self.example if batch is None else batch
        with torch.no_grad():
            return self.model(**batch) if isinstance(batch, dict) else self.model(*batch)


def built(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The module with every parameter moved by a seeded normal draw, so that no bias is zero and no norm is plain."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def ids(batch: int = 2, tokens: int = 7, seed: int = 1) -> Tensor:
    """Token ids [batch, tokens], none of them a special one."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, zoo_huggingface.VOCABULARY, (batch, tokens), generator=generator)


def values(*shape: int, seed: int = 1) -> Tensor:
    """Normal values of that shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _huggingface(name: str) -> Zoo:
    kind, sites, way = zoo_huggingface.ARCHITECTURES[name][3:]
    example: dict[str, Any] = {"pixel_values": values(2, 3, 16, 16)} if kind == "pixels" else {"input_ids": ids()}
    if kind == "both":
        example["decoder_input_ids"] = ids(2, 5, seed=2)
    elif kind == "ids":
        example["attention_mask"] = torch.ones_like(example["input_ids"])
    return Zoo(built(lambda: zoo_huggingface.build(name)), example, sites, way)


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


def _zoo() -> dict[str, Callable[[], Zoo]]:
    found: dict[str, Callable[[], Zoo]] = {name: partial(_huggingface, name) for name in zoo_huggingface.ARCHITECTURES}
    for activation in ("relu", "gelu"):
        for norm in ("pre", "post"):
            found[f"encoder-{norm}-{activation}"] = partial(_encoder, activation, norm == "pre")
    own = (_nanogpt, _inline, _mixer, _residual_stack, _flat_stack, _bare, _bare_block)
    return found | {make.__name__[1:].replace("_", "-"): make for make in own}


#: Name -> builder. `Zoo.sites` is empty where nothing may be found.
ZOO: Mapping[str, Callable[[], Zoo]] = MappingProxyType(_zoo())
