"""What analyses find out about one site. All fact classes live here, so that passes never import each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class FeedForwards:
    """The host was searched: graph.sites and graph.refusals are filled. (A fact of the whole model.)"""

    found: int
    refused: int


@dataclass(frozen=True, eq=False)
class CalibrationData:
    """The run has calibration data. (A fact of the whole model, given by the pipeline itself.)

    order: the number of the source that each batch is of, once the batches were read; empty where that is not known.
    """

    order: Sequence[int] = ()


@dataclass(frozen=True, eq=False)
class ActivationSample:
    """Inputs of the FFN on calibration data: a uniform sample of tokens.

    inputs: [kept, hidden] float32. seen: the number of tokens that it was drawn from. sources: int64 [kept], the number of the
    source that each token is of; None: of one.
    """

    inputs: Tensor
    seen: int
    sources: Tensor | None = None


@dataclass(frozen=True, eq=False)
class OutputGoals:
    """What the FFN would have to say to the tokens of the activation sample, in its order, for the sum that its output goes
    into to be what it is in the dense model.

    goals: [kept, output] float32, output bias included. On a dense prefix it is what the dense FFN says.
    """

    goals: Tensor


@dataclass(frozen=True, eq=False)
class NeuronStatistics:
    """Moments of the neuron outputs h over all calibration tokens (not only the sample), each [neurons] float32."""

    tokens: int
    mean: Tensor
    second_moment: Tensor


@dataclass(frozen=True, eq=False)
class CoActivation:
    """A graph of neurons that fire together: every edge stands in it in both directions.

    neighbours [edges] (int64) of neuron i, ascending, and their weights [edges] (float32, above 0) stand at offsets[i] ..
    offsets[i + 1]; offsets: int64 [neurons + 1].
    """

    offsets: Tensor
    neighbours: Tensor
    weights: Tensor


@dataclass(frozen=True, eq=False)
class NeuronImportance:
    """How much each neuron matters to the model's loss, by group of similar text.

    values: float32 [groups, neurons], the sum of |h_i dL/dh_i| over the group's tokens. centres: float32 [groups, hidden], the
    mean FFN input of each group. tokens: int64 [groups].
    """

    values: Tensor
    centres: Tensor
    tokens: Tensor


@dataclass(frozen=True, eq=False)
class NeuronGroups:
    """A clustering of neurons: groups (int64 indices, one tensor an expert) and the neurons of a shared expert."""

    groups: tuple[Tensor, ...]
    shared: Tensor


@dataclass(frozen=True, eq=False)
class Experts:
    """The spec of the site holds experts, all on.

    copies: every copy of the dense FFN (with its part of a shared expert) computes what that computes: gates whose sum over
    the copies is 1 preserve the function.
    """

    sizes: tuple[int, ...]
    partition: bool
    copies: bool = False


@dataclass(frozen=True, eq=False)
class Routing:
    """The spec of the site holds a router and a choice rule."""

    router: str
    top_k: int | None
    threshold: float | None


@dataclass(frozen=True, eq=False)
class Budget:
    """The active fraction that the site may have: its part of a budget for the whole model."""

    active: float


Fact = (
    FeedForwards
    | CalibrationData
    | Budget
    | ActivationSample
    | OutputGoals
    | NeuronStatistics
    | CoActivation
    | NeuronImportance
    | NeuronGroups
    | Experts
    | Routing
)
