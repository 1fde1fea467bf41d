"""How far one converted layer is from its dense FFN, beside null models of the same layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from moeify.ir.feed_forward import ROWWISE, FeedForward
from moeify.ir.moe_spec import MoESpec
from moeify.ir.token_weights import damped
from moeify.layers.moe_layer import MoELayer
from moeify.measure.dense_ffn import DenseFFN
from moeify.measure.fitted_nulls import FittedNulls, fit_nulls, generator_of, squared_outputs, token_runs
from moeify.measure.load import fraction_used
from moeify.measure.nulls import choosing
from moeify.measure.oracle import nearest_choice
from moeify.measure.substitute import neuron_outputs, values_of, with_choice

#: What is built, then the nulls, by the names that evaluations have for them.
NAMES = ("converted", "static-mask", "random-partition", "oracle-routing", "full-rank-compensation")


@dataclass(frozen=True, eq=False)
class LayerSample:
    """Inputs of one FFN, float32 [tokens, hidden]: `fit` to fit nulls on, `held` to judge by.

    held_out: no pass has looked at `held`.
    """

    fit: Tensor
    held: Tensor
    held_out: bool


@dataclass(frozen=True)
class LayerErrors:
    """errors: sum w |y_dense - y|^2 / sum w |y_dense|^2 by name, the dense FFN's bias left out of y_dense below, each token
    with the weight w that moeify.ir.token_weights.damped gives it. fractions: the active fraction of each. tokens: judged by;
    fitted: that nulls were fitted on. held_out: no pass had looked at the tokens judged by. chooses: does the layer route?

    oracle-routing is there for layers that route.
    """

    errors: Mapping[str, float]
    fractions: Mapping[str, float]
    tokens: int
    fitted: int
    held_out: bool
    chooses: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def layer_errors(site: FeedForward, spec: MoESpec, sample: LayerSample, seed: int) -> LayerErrors:
    """Judges the layer that the spec describes; float32 throughout. The sample holds a token of each kind at least."""
    ffn = DenseFFN.of_site(site)
    layer = _judged(site, spec)
    built = _Built(layer, _order(spec))
    with torch.no_grad():
        on = torch.cat([layer.route(x).chosen for x in token_runs(sample.held)]).double().mean(0)
        fraction = fraction_used(layer.config, on, site.neurons)
        nulls = fit_nulls(ffn, layer.config, sample.fit, fraction, built, generator_of(seed, site.path))
        parts = [_errors(ffn, built, nulls, x) for x in token_runs(sample.held)]
    sizes = torch.cat([size for size, _ in parts]).double()
    weights = damped(sizes)
    whole = float(weights @ sizes)
    fractions = dict.fromkeys(NAMES, fraction) | {
        "static-mask": nulls.static.fraction,
        "random-partition": nulls.random.fraction,
        "full-rank-compensation": fraction + nulls.term_fraction,
    }
    errors = {
        name: float(weights @ torch.cat([found[name] for _, found in parts]).double()) / max(whole, 1e-300)
        for name in NAMES
        if name in parts[0][1]
    }
    used = {name: fractions[name] for name in errors}
    return LayerErrors(errors, used, len(sample.held), len(sample.fit), sample.held_out, built.chooses)


@dataclass(frozen=True, eq=False)
class _Built:
    """The layer on hidden values that are known already. order: the dense neuron behind each row; None: rows are others."""

    layer: MoELayer
    order: Tensor | None
    chooses: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "chooses", bool(choosing({"": self.layer})))

    def hidden(self, x: Tensor, h: Tensor) -> Tensor:
        """[tokens, rows]"""
        return neuron_outputs(self.layer, x) if self.order is None else h[:, self.order]

    def __call__(self, x: Tensor, h: Tensor) -> Tensor:
        routing = self.layer.route(x)
        return with_choice(self.layer, x, self.hidden(x, h), values_of(self.layer, routing.scores), routing.chosen)

    def oracle(self, x: Tensor, h: Tensor, expected: Tensor) -> Tensor:
        routing, h = self.layer.route(x), self.hidden(x, h)
        values = values_of(self.layer, routing.scores)
        chosen = nearest_choice(self.layer, x, h, values, routing.chosen, expected)
        return with_choice(self.layer, x, h, values, chosen)


def _judged(site: FeedForward, spec: MoESpec) -> MoELayer:
    """The layer in float32; rows going in stay as they are where their outputs are known already, which spares their copies."""
    layer = MoELayer.from_spec(site, spec).eval()
    known = ("up", "gate", "up_bias", "gate_bias") if _order(spec) is not None else ()
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        if name not in known:
            tensor.data = tensor.data.float()
    return layer


def _order(spec: MoESpec) -> Tensor | None:
    return None if any(name in spec.weights for name in ROWWISE if name != "down") else spec.order


def _errors(ffn: DenseFFN, built: _Built, nulls: FittedNulls, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """|y|^2 of the dense FFN and the squared errors by name, each [tokens], for x [tokens, hidden]."""
    h = ffn.hidden(x)
    expected, y = ffn.output(h), built(x, h)
    found = {
        "converted": y,
        "static-mask": nulls.static(x, h),
        "random-partition": nulls.random(x, h),
        "full-rank-compensation": y + nulls.term(x),
    }
    if built.chooses:
        found["oracle-routing"] = built.oracle(x, h, expected)
    return squared_outputs(ffn, expected), {name: (expected - value).square().sum(-1) for name, value in found.items()}
