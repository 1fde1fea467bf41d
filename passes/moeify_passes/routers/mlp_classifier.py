"""The router that learns which experts hold most of a token's activation (MoEfication, section 3.3, "MLP")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from moeify.errors import UsageError
from moeify.ir.facts import ActivationSample, Fact
from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.ir.moe_spec import MoESpec, Router
from moeify.pipeline.context import PassContext
from moeify_passes.expert_rows import ExpertRows, expert_masses, expert_rows
from moeify_passes.held_site import token_chunks
from moeify_passes.routers.classifier_fit import ClassifierFit, fit_classifier
from moeify_passes.routers.held_out import held_out
from moeify_passes.routers.key_rows import key_centres


@dataclass(frozen=True)
class MlpClassifier:
    """Predicts which experts hold most of a token's activation.

    weight_out tanh(weight_in x/|x|), as wide as there are experts and without biases, starts from the centres of the keys and
    the identity and is fitted by Adam with binary cross-entropy: the target of expert e is the sum of its |h_i| (of x/|x|, for
    bias-free ReLU), divided by the largest of the batch. The epoch that captures most activation with a fifth of the experts,
    on tokens not learnt from, is kept.

    epochs, batch, learning_rate: as in the authors' code.
    """

    epochs: int = 30
    batch: int = 512
    learning_rate: float = 0.01

    kind: ClassVar[str] = "mlp-classifier"
    needs: ClassVar[tuple[type[Fact], ...]] = (ActivationSample,)
    uses: ClassVar[tuple[type[Fact], ...]] = ()

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"mlp-classifier.{name} is {getattr(self, name)}: choose 1 or more")
        if not self.learning_rate > 0:
            raise UsageError(f"mlp-classifier.learning_rate is {self.learning_rate}: choose a number above 0")

    def shape(self, config: MoEConfig) -> RouterConfig:
        """The router's shape in front of a layer of that shape."""
        return RouterConfig("mlp", width=config.experts, activation="tanh", unit_input=True)

    def route(self, site: FeedForward, spec: MoESpec, context: PassContext) -> Router:
        """The router for the spec's experts, fitted on nine tenths of the sample."""
        sample = context.get(site, ActivationSample).inputs
        x, _ = held_out(site, sample, context.generator("held-out", site))
        generator = context.generator("routers/mlp-classifier", site)
        learn, judge = ((F.normalize(part.float(), dim=1), part) for part in held_out(site, x, generator))
        rows = expert_rows(site, spec)
        fit = ClassifierFit(self.epochs, self.batch, self.learning_rate)
        tensors = fit_classifier(
            fit, (learn[0], _masses(rows, learn[1])), (judge[0], _masses(rows, judge[1])), key_centres(site, spec), generator
        )
        return Router(self.shape(spec.config(site)), tensors)


def _masses(rows: ExpertRows, x: Tensor) -> Tensor:
    """[tokens, experts]: the sum of each expert's |h_i| / |x|, as x/|x| would give it without biases and in ReLU."""
    chunks = token_chunks(x, max(rows.offsets[-1], rows.tensors["down"].shape[1]))
    found = torch.cat([expert_masses(rows, chunk) for chunk in chunks])
    size: Tensor = torch.linalg.vector_norm(x.float(), dim=1, keepdim=True)
    return found / size.clamp(min=torch.finfo(torch.float32).tiny)
