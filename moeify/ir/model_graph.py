"""The compiler's view of a model: sites, specs, and the host that they belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from moeify.ir.feed_forward import FeedForward, Refusal
from moeify.ir.moe_config import MoEConfig
from moeify.ir.moe_spec import MoESpec

#: One batch of model inputs: positional arguments or keyword arguments.
Batch = tuple[Any, ...] | dict[str, Any]


class Walk(Protocol):
    """One journey through the model, site by site in execution order. It holds what is alive between two sites."""

    def inputs(self, site: FeedForward) -> Iterator[Tensor]:
        """The inputs of the site's FFN, [tokens, hidden] a batch, as the converted (or dense) prefix gives them.

        May be iterated more than once before the walk moves on; asking for a later site moves it on.
        """
        ...

    def leave(self, site: FeedForward) -> None:
        """Must be called before a site is spliced: what a dense prefix still needs of its weights is computed now."""
        ...


class GoalWalk(Walk, Protocol):
    """A journey through the converted model with the dense model at its side."""

    def goals(self, site: FeedForward) -> Iterator[Tensor] | None:
        """For each batch of `inputs` what the FFN would have to say to them, [tokens, output], output bias included, for the
        sum that its output goes into (the residual stream) to be what it is in the dense model; None where there is none."""
        ...


#: The outputs of an FFN, float32 [tokens, output], for its inputs, float32 [tokens, hidden].
StandIn = Callable[[Tensor], Tensor]


class Trial(Protocol):
    """The dense model, run as far as some site with other functions for the FFNs on the way. Stays as it is."""

    def past(self, site: FeedForward, stand_in: StandIn) -> Trial:
        """Behind the first call of a site further on, all calls of which are the stand-in's; FFNs between stay dense."""
        ...

    def distance(self, stand_ins: Mapping[str, StandIn]) -> float:
        """How far the model's output is from the dense one with these for FFNs still to come, by site path, the others of them
        dense: mean KL in nats for logits, else the squared relative error."""
        ...


@dataclass(frozen=True, eq=False)
class OutputGradient:
    """One FFN on one batch: inputs [tokens, hidden], and the gradient of the model's loss by its outputs [tokens, output]."""

    inputs: Tensor
    gradient: Tensor


#: What a backward pass goes out from: see `Host.gradients`.
Loss = Literal["auto", "next-token", "energy"]


class Host(Protocol):
    """Where the sites stand: an eager module, an ONNX graph, or shards on disk."""

    @property
    def model(self) -> Any:
        """The host itself: for the eager host the user's nn.Module, converted as far as splices have come."""
        ...

    def find(self) -> tuple[tuple[FeedForward, ...], tuple[Refusal, ...]]:
        """All sites in execution order, and the near matches that were refused."""
        ...

    def walk(self, batches: Iterable[Batch], prefix: str, memory: int) -> AbstractContextManager[Walk]:
        """A journey on those batches; prefix is "converted" (what was spliced is used) or "dense"; memory in bytes is what
        the values alive between two sites may take, the rest is kept in a temporary file."""
        ...

    def goal_walk(self, batches: Iterable[Batch], memory: int) -> AbstractContextManager[GoalWalk]:
        """A journey through the converted model that knows where the dense one would be; memory: of both together."""
        ...

    def gradients(self, batches: Iterable[Batch], loss: Loss) -> Iterator[dict[str, OutputGradient]]:
        """Backward passes of the dense model, one a row of a batch (a batch, where rows cannot be told apart): what comes back
        at each FFN, by site path, tokens in the order in which a walk gives them.

        loss: "next-token", the summed cross-entropy of a causal language model; "energy", half the squared distance of every
        output vector from its own mean, for all other models; "auto": whichever fits. Only before anything is spliced.
        """
        ...

    def effects(
        self, sites: Sequence[FeedForward], batches: Iterable[Batch], size: float, generator: torch.Generator
    ) -> list[float]:
        """For each site, how far the dense model's output moves when normal noise of `size` times the norm of each token's
        output is added to the site's: mean KL in nats for logits, else the squared relative error. Sites in execution order."""
        ...

    def trials(self, batches: Iterable[Batch]) -> AbstractContextManager[Trial]:
        """A trial that has come nowhere yet. Only before anything is spliced."""
        ...

    def splice(self, site: FeedForward, spec: MoESpec) -> None:
        """Puts the finished spec into the host; the dense weights of the site are let go."""
        ...

    def let_go(self, site: FeedForward) -> None:
        """Nobody will read the site's weights for a while: those that lie in files need not stay in memory."""
        ...


@dataclass
class ModelGraph:
    """A model on its way through the passes. `sites` are the FFNs to work on (all, or those selected), `specs` what has
    been decided for them so far, by site path, `spliced` the shapes of the layers that are in the host already."""

    host: Host
    sites: tuple[FeedForward, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    specs: dict[str, MoESpec] = field(default_factory=dict)
    spliced: dict[str, MoEConfig] = field(default_factory=dict)

    @property
    def model(self) -> Any:
        """The host's model."""
        return self.host.model

    def splice(self, site: FeedForward) -> None:
        """Puts the site's spec into the host and forgets it: only its shape stays."""
        spec = self.specs.pop(site.path)
        self.host.splice(site, spec)
        self.spliced[site.path] = spec.config(site)

    def only(self, sites: Sequence[FeedForward]) -> ModelGraph:
        """The same model with fewer sites to work on; specs are shared."""
        return ModelGraph(self.host, tuple(sites), self.refusals, self.specs, self.spliced)
