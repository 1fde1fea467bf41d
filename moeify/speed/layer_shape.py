"""The shape of a synthetic layer, as the command line writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Self

from moeify.errors import UsageError, did_you_mean
from moeify.ir.activations import activation
from moeify.ir.moe_config import MoEConfig, RouterConfig

_WORDS = {"true": True, "false": False}


@dataclass(frozen=True)
class LayerShape:
    """A layer without biases. Active are `shared` rows, the low-rank term and top_k of the routed experts, all of one size.

    threshold: experts are chosen by a threshold (top_k of them reach it) instead of top-k. Raises UsageError for sizes that do
    not fit together.
    """

    hidden: int
    neurons: int
    experts: int
    top_k: int
    activation: str = "relu"
    gated: bool = False
    shared: int = 0
    rank: int = 0
    threshold: bool = False

    def __post_init__(self) -> None:
        activation(self.activation)
        for name in ("hidden", "neurons", "experts", "top_k"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: choose 1 or more")
        if self.top_k > self.experts:
            raise UsageError(f"top_k is {self.top_k}: choose from 1 to {self.experts} (the number of experts)")
        if self.rank < 0 or not 0 <= self.shared < self.neurons or (self.neurons - self.shared) % self.experts:
            raise UsageError(
                f"{self.experts} experts of one size cannot share {self.neurons} neurons of which {self.shared} are always on "
                f"(rank {self.rank}): choose numbers that divide"
            )
        if self.experts > self.hidden:
            raise UsageError(
                f"experts is {self.experts}: choose no more than hidden ({self.hidden}), whose values are the scores"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """`hidden=768,neurons=3072,experts=8,top_k=2,activation=silu,gated=true`. Raises UsageError for what is not so."""
        known = {field.name: field for field in fields(cls)}
        found: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = part.partition("=")
            if name not in known:
                raise UsageError(f"--shape: {name!r} is nothing that a layer has: {did_you_mean(name, known)}")
            found[name] = _value(name, value, str(known[name].type))
        if missing := [name for name, field in known.items() if field.default is MISSING and name not in found]:
            raise UsageError(f"--shape {text!r} lacks {', '.join(missing)}: write such as {_EXAMPLE}")
        return cls(**found)

    def __str__(self) -> str:
        """Its parts that are not as usual, as `parse` reads them."""
        shown: Mapping[str, Any] = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) != f.default}
        return ",".join(f"{name}={str(value).lower()}" for name, value in shown.items())

    @property
    def config(self) -> MoEConfig:
        """The layer as a model would hold it; a threshold lets as many experts through as top_k."""
        size = (self.neurons - self.shared) // self.experts
        return MoEConfig(
            hidden=self.hidden, output=self.hidden, activation=self.activation, gated=self.gated,
            offsets=tuple(self.shared + size * i for i in range(self.experts + 1)), router=RouterConfig("linear"),
            gate_rule="one" if self.threshold else "softmax", normalize=not self.threshold,
            top_k=None if self.threshold else self.top_k, threshold=0.5 if self.threshold else None, rank=self.rank,
        )  # fmt: skip

    @property
    def dense_weights(self) -> int:
        return (3 if self.gated else 2) * self.hidden * self.neurons

    @property
    def active(self) -> float:
        """The part of the dense layer's weights that a token uses, router and low-rank term included."""
        return self.config.active_fraction(self.neurons, self.top_k)


_EXAMPLE = "hidden=768,neurons=3072,experts=8,top_k=2,activation=silu,gated=true"


def _value(name: str, text: str, kind: str) -> Any:
    if kind == "str":
        return text
    if kind == "bool":
        if text.lower() in _WORDS:
            return _WORDS[text.lower()]
        raise UsageError(f"--shape: {name} is {text!r}: choose true or false")
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"--shape: {name} is {text!r}: give a whole number") from error
