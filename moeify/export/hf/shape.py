"""What a stock class states once for all of its MoE layers, read off converted ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moeify.errors import ConversionError
from moeify.ir.moe_config import GateRule, MoEConfig

_AGAIN = "convert with another recipe, or keep moeify's own folder"


@dataclass(frozen=True)
class StockShape:
    """width: neurons of a routed expert; shared: of the shared expert, 0 without one. top_k: `experts` where all are on.

    gates: one (experts are added up), softmax or sigmoid of the scores; normalize: divided by the sum over the chosen. steered:
    a selection bias moves the choice.
    """

    experts: int
    width: int
    shared: int
    top_k: int
    gates: GateRule
    normalize: bool
    steered: bool

    def __str__(self) -> str:
        rule = {"one": "added up", "softmax": "softmax gates", "sigmoid": "sigmoid gates"}[self.gates]
        rule += ", normalised" if self.normalize and self.gates != "one" else ""
        beside = f" beside a shared one of {self.shared}" if self.shared else ""
        return f"{self.top_k} of {self.experts} experts of {self.width} neurons{beside}, {rule}"


def shape_of(layers: Mapping[str, MoEConfig], *, lossy: bool) -> tuple[StockShape, tuple[str, ...]]:
    """The shape of all layers, and what of them it leaves out.

    lossy: leave out what no class can hold but a model can do without. Raises ConversionError where it is something else, or
    where layers differ.
    """
    lost: dict[str, list[str]] = {}
    for path, config in layers.items():
        _check(path, config)
        for what in _extras(config):
            lost.setdefault(what, []).append(path)
    if lost and not lossy:
        what, paths = next(iter(lost.items()))
        raise ConversionError(f"{paths[0]}: has {what}, which no stock class holds; --lossy leaves it out, or {_AGAIN}")
    shapes = {path: _shape(config) for path, config in layers.items()}
    first = next(iter(shapes))
    for path, shape in shapes.items():
        if shape != shapes[first]:
            raise ConversionError(
                f"stock classes have one shape for all MoE layers: {first} is {shapes[first]}; {path} is {shape}; {_AGAIN}"
            )
    return shapes[first], tuple(f"{what} ({len(paths)} layers)" for what, paths in lost.items())


def _shape(config: MoEConfig) -> StockShape:
    top_k = config.experts if config.top_k is None else config.top_k
    normalize = config.normalize and config.gate_rule != "one"
    return StockShape(config.experts, config.sizes[0], config.shared, top_k, config.gate_rule, normalize, config.selection_bias)


def _check(path: str, config: MoEConfig) -> None:
    """Raises ConversionError for what a model cannot do without."""
    router, sizes = config.router, config.sizes
    plain = router is None or (
        router.kind in ("linear", "average-key") and router.output == "identity" and not router.unit_input
    )
    reasons = {
        f"its router is {router.kind if router else ''!r}, and those of stock classes are linear": not plain,
        "its router has a bias, and those of stock classes have none": router is not None and router.bias,
        "its FFN is not gated, and those of stock classes are": not config.gated,
        "its FFN has biases, and those of stock classes have none": config.up_bias or config.gate_bias,
        f"its experts have {min(sizes)} to {max(sizes)} neurons, and those of stock classes one size": len(set(sizes)) > 1,
        "one merged expert runs (smear), and stock classes route": config.smear,
        "its gates are 1 / top-k, and those of stock classes are not equal": config.normalize and config.gate_rule == "one",
        "its selection bias goes with sigmoid gates alone in stock classes": config.selection_bias
        and config.gate_rule != "sigmoid",
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConversionError(f"{path}: {reason}; {_AGAIN}")


def _extras(config: MoEConfig) -> Iterator[str]:
    if config.idle:
        yield "idle vectors"
    if config.rank:
        yield "a low-rank term"
    if config.output_bias:
        yield "an output bias"
    if config.threshold is not None:
        yield "a threshold"
