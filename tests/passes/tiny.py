"""Small sites with random weights, a host that holds them, and inputs whose neurons fire together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from moeify.ir.facts import ActivationSample, CalibrationData, Fact, FeedForwards
from moeify.ir.feed_forward import FeedForward, Refusal, Rewrite, Weight
from moeify.ir.model_graph import Batch, GoalWalk, Loss, ModelGraph, OutputGradient, StandIn, Trial, Walk
from moeify.ir.moe_spec import MoESpec
from moeify.pipeline.context import PassContext

HIDDEN, NEURONS, OUTPUT = 12, 48, 10


def handle(name: str, value: Tensor) -> Weight:
    """A handle to a tensor that is already in its neuron-major form."""
    return Weight(name, tuple(value.shape), lambda _: value)


def site_of(path: str, activation: str, **tensors: Tensor) -> FeedForward:
    """A site with those tensors: up, down, and perhaps gate, up_bias, gate_bias, output_bias."""
    handles: dict[str, Any] = {name: handle(f"{path}.{name}", value) for name, value in tensors.items()}
    neurons, hidden = tensors["up"].shape
    rewrite = Rewrite("submodule", {"ffn": path})
    return FeedForward(path, activation, hidden, neurons, tensors["down"].shape[1], rewrite=rewrite, **handles)


def random_site(
    path: str = "layers.0.mlp",
    *,
    gated: bool = False,
    biases: bool = False,
    neurons: int = NEURONS,
    activation: str = "relu",
    dtype: torch.dtype = torch.float32,
) -> FeedForward:
    """Normal weights that depend on the arguments alone."""
    generator = torch.Generator().manual_seed(len(path) + 2 * gated + biases)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).div(shape[-1] ** 0.5).to(dtype)

    tensors = {"up": draw(neurons, HIDDEN), "down": draw(neurons, OUTPUT)}
    if gated:
        tensors["gate"] = draw(neurons, HIDDEN)
    if biases:
        tensors |= {"up_bias": draw(neurons), "output_bias": draw(OUTPUT)}
        tensors |= {"gate_bias": draw(neurons)} if gated else {}
    return site_of(path, activation, **tensors)


@dataclass(frozen=True, eq=False)
class Planted:
    """Which planted group each neuron belongs to, and the site."""

    site: FeedForward
    groups: Tensor


def planted_site(groups: int = 4, neurons: int = NEURONS, hidden: int = HIDDEN) -> Planted:
    """A ReLU FFN whose neurons, in a shuffled order, have keys close to the direction of their group."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.arange(neurons)[torch.randperm(neurons, generator=generator)] % groups
    directions = torch.linalg.qr(torch.randn(hidden, hidden, generator=generator)).Q[:groups]
    up = directions[labels] + 0.05 * torch.randn(neurons, hidden, generator=generator)
    down = torch.randn(neurons, OUTPUT, generator=generator)
    return Planted(site_of("planted", "relu", up=up, down=down), labels)


def correlated_inputs(tokens: int, hidden: int = HIDDEN, seed: int = 3) -> Tensor:
    """[tokens, hidden] around a few centres, so that some directions go together."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(5, hidden, generator=generator)
    chosen = torch.randint(5, (tokens,), generator=generator)
    return centres[chosen] + 0.7 * torch.randn(tokens, hidden, generator=generator)


@dataclass
class TinyHost:
    """Holds sites and remembers splices."""

    found: tuple[FeedForward, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    spliced: dict[str, MoESpec] = field(default_factory=dict)

    @property
    def model(self) -> Any:
        return self

    def find(self) -> tuple[tuple[FeedForward, ...], tuple[Refusal, ...]]:
        return self.found, self.refusals

    def walk(self, batches: Iterable[Batch], prefix: str, memory: int) -> AbstractContextManager[Walk]:
        return nullcontext(_TinyWalk(tuple(batches)))

    def goal_walk(self, batches: Iterable[Batch], memory: int) -> AbstractContextManager[GoalWalk]:
        return nullcontext(_TinyWalk(tuple(batches)))

    def gradients(self, batches: Iterable[Batch], loss: Loss) -> Iterator[dict[str, OutputGradient]]:
        """Of the loss sum(y^2) / 2: the outputs themselves."""
        for batch in batches:
            x = batch["x"] if isinstance(batch, dict) else batch[0]
            yield {site.path: OutputGradient(x, site.forward(x)) for site in self.found}

    def effects(
        self, sites: Sequence[FeedForward], batches: Iterable[Batch], size: float, generator: torch.Generator
    ) -> list[float]:
        return [2.0**place for place in range(len(sites))]

    def trials(self, batches: Iterable[Batch]) -> AbstractContextManager[Trial]:
        return nullcontext(_TinyTrial(self.found, tuple(batches), {}))

    def splice(self, site: FeedForward, spec: MoESpec) -> None:
        self.spliced[site.path] = spec

    def let_go(self, site: FeedForward) -> None:
        """Its weights are always in memory."""


@dataclass(frozen=True)
class _TinyTrial:
    """Of sites that all see the same inputs: the squared sum of their outputs' relative errors, as if all pointed one way; the
    square of each weighs twice as much as that of the one before."""

    found: tuple[FeedForward, ...]
    batches: tuple[Batch, ...]
    stand_ins: Mapping[str, StandIn]

    def past(self, site: FeedForward, stand_in: StandIn) -> _TinyTrial:
        return replace(self, stand_ins={**self.stand_ins, site.path: stand_in})

    def distance(self, stand_ins: Mapping[str, StandIn]) -> float:
        functions, total = {**self.stand_ins, **stand_ins}, 0.0
        for place, site in enumerate(self.found):
            x = torch.cat(list(_TinyWalk(self.batches).inputs(site))).flatten(0, -2)
            wanted, found = site.forward(x), functions.get(site.path, site.forward)(x)
            total += float(2.0**place * (wanted - found).square().sum() / wanted.square().sum()) ** 0.5
        return total**2


@dataclass(frozen=True)
class _TinyWalk:
    batches: tuple[Batch, ...]

    def inputs(self, site: FeedForward) -> Iterator[Tensor]:
        for batch in self.batches:
            yield batch["x"] if isinstance(batch, dict) else batch[0]

    def goals(self, site: FeedForward) -> Iterator[Tensor] | None:
        return None

    def leave(self, site: FeedForward) -> None:
        """Nothing is computed ahead."""


def graph_of(*sites: FeedForward) -> ModelGraph:
    """A graph with those sites to work on."""
    return ModelGraph(TinyHost(sites), sites)


def data_context(inputs: Tensor, *wanted: type[Fact], batch: int = 100, seed: int = 0) -> PassContext:
    """A context whose every site gets `inputs`, in batches, and in which later passes want those facts."""
    context = PassContext(batches=(), seed=seed, wanted=frozenset(wanted))
    context.put(None, CalibrationData())
    context.inputs = lambda _: iter(torch.split(inputs, batch))
    return context


def sampled_context(graph: ModelGraph, inputs: Tensor | None = None, seed: int = 0) -> PassContext:
    """A context in which the sites were found and have a sample of inputs."""
    context = PassContext(seed=seed)
    sample = correlated_inputs(600) if inputs is None else inputs
    context.put(None, FeedForwards(len(graph.sites), 0))
    for site in graph.sites:
        context.put(site, ActivationSample(sample, len(sample)))
    return context


#: Caption -> a site of that kind.
SITES: dict[str, Callable[[], FeedForward]] = {
    "two-matrix": lambda: random_site("plain"),
    "two-matrix with biases": lambda: random_site("plain.biased", biases=True),
    "gated": lambda: random_site("gated", gated=True, activation="silu"),
    "gated with biases": lambda: random_site("gated.biased", gated=True, biases=True, activation="gelu-tanh"),
    "gated bfloat16": lambda: random_site("half", gated=True, activation="silu", dtype=torch.bfloat16),
}
