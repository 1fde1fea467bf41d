"""The router that predicts how much each expert would say (D2DMoE, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from moeify.errors import UsageError
from moeify.ir.facts import ActivationSample, Fact
from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.ir.moe_spec import MoESpec, Router
from moeify.ir.router_config import RouterOutput
from moeify.pipeline.context import PassContext
from moeify_passes.expert_rows import ExpertRows, expert_norms, expert_rows
from moeify_passes.held_site import token_chunks
from moeify_passes.routers.held_out import held_out
from moeify_passes.routers.linear_fit import fit_linear
from moeify_passes.routers.mlp_fit import MlpShape, fit_mlp


@dataclass(frozen=True)
class NormRegression:
    """Predicts how much each expert would add.

    score_e(x) is fitted to the L2 norm of the expert's output E_e(x) on the calibration sample.

    width: None or 0 is linear least squares with a bias, in closed form; else the hidden units of a small MLP (128 in the
    paper; unlike the paper's it has biases). target: the "norm" of the output, or that of the neuron outputs h ("neurons",
    the paper's other choice). relative: scores are |score| / the token's largest, so that a threshold of 1 - tau is the paper's
    dynamic k (section 3.3). ridge: penalty of the linear fit, for inputs of variance 1. activation, steps, learning_rate:
    of the MLP, fitted by Adam.
    """

    width: int | None = None
    target: Literal["norm", "neurons"] = "norm"
    relative: bool = False
    ridge: float = 0.01
    activation: Literal["tanh", "relu"] = "tanh"
    steps: int = 2000
    learning_rate: float = 1e-3

    kind: ClassVar[str] = "norm-regression"
    needs: ClassVar[tuple[type[Fact], ...]] = (ActivationSample,)
    uses: ClassVar[tuple[type[Fact], ...]] = ()

    def __post_init__(self) -> None:
        if self.width is not None and self.width < 0:
            raise UsageError(f"norm-regression.width is {self.width}: choose 0 (linear) or more")
        if self.target not in ("norm", "neurons"):
            raise UsageError(f"norm-regression.target is {self.target!r}: choose norm or neurons")
        if self.activation not in ("tanh", "relu"):
            raise UsageError(f"norm-regression.activation is {self.activation!r}: choose tanh or relu")
        if self.steps < 1:
            raise UsageError(f"norm-regression.steps is {self.steps}: choose 1 or more")
        for name in ("ridge", "learning_rate"):
            if not getattr(self, name) > 0:
                raise UsageError(f"norm-regression.{name} is {getattr(self, name)}: choose a number above 0")

    def shape(self, config: MoEConfig) -> RouterConfig:
        """The router's shape in front of a layer of that shape."""
        if not self.width:
            return RouterConfig("linear", bias=True, output="relative" if self.relative else "identity")
        output: RouterOutput = "relative" if self.relative else "abs"
        return RouterConfig("mlp", bias=True, width=self.width, activation=self.activation, output=output)

    def route(self, site: FeedForward, spec: MoESpec, context: PassContext) -> Router:
        """The router for the spec's experts, fitted on nine tenths of the sample."""
        sample = context.get(site, ActivationSample).inputs
        x, _ = held_out(site, sample, context.generator("held-out", site))
        rows = expert_rows(site, spec)
        if not self.width:
            weight, bias = fit_linear(x, self._targets(rows, x), self.ridge)
            return Router(self.shape(spec.config(site)), {"weight": weight, "bias": bias})
        generator = context.generator("routers/norm-regression", site)
        learn, judge = held_out(site, x, generator)
        shape = MlpShape(self.width, self.activation, self.steps, self.learning_rate)
        tensors = fit_mlp(shape, (learn, self._targets(rows, learn)), (judge, self._targets(rows, judge)), generator)
        return Router(self.shape(spec.config(site)), tensors)

    def _targets(self, rows: ExpertRows, x: Tensor) -> Tensor:
        """[tokens, experts]."""
        widest = max(rows.offsets[-1], rows.tensors["down"].shape[1])
        chunks = token_chunks(x, widest)
        return torch.cat([expert_norms(rows, chunk, of_neurons=self.target == "neurons") for chunk in chunks])
