"""The shape of an MoE layer: everything of docs/moe-layer.md but the tensors. Plain data; JSON in the output folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from moeify.errors import InputError, UsageError
from moeify.ir.activations import activation
from moeify.ir.composition import Composition, core_shapes, count
from moeify.ir.router_config import SEEDS, Inference, RouterConfig, RouterKind, Scope

__all__ = ["GATE_RULES", "SEEDS", "GateRule", "Inference", "MoEConfig", "RouterConfig", "RouterKind", "Scope"]

GateRule = Literal["one", "softmax", "sigmoid"]
GATE_RULES: tuple[GateRule, ...] = ("one", "softmax", "sigmoid")


@dataclass(frozen=True)
class MoEConfig:
    """The shape of one MoE layer. Names and meaning follow docs/moe-layer.md; `rank` 0 means no low-rank term.

    neurons: of the dense FFN that it was made of; None where nobody said so: as many as rows. shards: so many neighbouring
    experts are one copy of that FFN; None where experts are no copies. smear: one merged expert a sequence runs. composed: how
    rows come of a frozen core of `neurons` rows; None where they are stored.
    """

    hidden: int
    output: int
    activation: str
    gated: bool
    offsets: tuple[int, ...]
    router: RouterConfig | None = None
    gate_rule: GateRule = "one"
    normalize: bool = False
    top_k: int | None = None
    threshold: float | None = None
    up_bias: bool = False
    gate_bias: bool = False
    output_bias: bool = False
    selection_bias: bool = False
    idle: bool = False
    rank: int = 0
    hidden_dropout: float = 0.0
    output_dropout: float = 0.0
    detach_sum: bool = False
    neurons: int | None = None
    shards: int | None = None
    smear: bool = False
    composed: Composition | None = None

    def __post_init__(self) -> None:
        activation(self.activation)
        if self.gate_rule not in GATE_RULES:
            raise UsageError(f"gate_rule is {self.gate_rule!r}: choose one of {', '.join(GATE_RULES)}")
        if len(self.offsets) < 2 or self.offsets[0] < 0 or any(a >= b for a, b in zip(self.offsets, self.offsets[1:])):
            raise UsageError(f"offsets {self.offsets} do not describe at least one expert, none of them empty")
        if self.top_k is not None and not 1 <= self.top_k <= self.experts:
            raise UsageError(f"top_k is {self.top_k}: choose from 1 to {self.experts} (the number of experts)")
        if self.router is None and (self.top_k not in (None, self.experts) or self.threshold is not None):
            raise UsageError("a choice of experts (top_k or threshold) needs a router")
        if self.router is not None and self.router.inference == "merged" and self.shards != 1:
            raise UsageError("merged inference takes the mean of experts that are copies: these are none")
        if self.detach_sum and not self.normalize:
            raise UsageError("detach_sum is about the sum that normalize divides by: set normalize too")
        if self.neurons is not None and self.neurons < 1:
            raise UsageError(f"neurons is {self.neurons}: a dense FFN has 1 or more")
        if self.shards is not None and (self.shards < 1 or self.experts % self.shards):
            raise UsageError(f"shards is {self.shards}: the {self.experts} experts cannot be copies of so many parts each")
        if self.composed is not None and (self.shards != 1 or {*self.sizes, self.shared or self.neurons} != {self.neurons}):
            raise UsageError(f"composed rows: every expert has as many rows as the core, {self.neurons}: offsets say otherwise")

        if self.smear and (self.router is None or self.router.kind == "stochastic"):
            raise UsageError("smear takes the means of router probabilities, and this layer has no router that computes any")
        if self.smear and len(set(self.sizes)) > 1:
            raise UsageError(f"smear merges experts of one size: these have {min(self.sizes)} to {max(self.sizes)} rows")

    @property
    def experts(self) -> int:
        return len(self.offsets) - 1

    @property
    def rows(self) -> int:
        return self.offsets[-1]

    @property
    def dense_neurons(self) -> int:
        """The neurons of the dense FFN; a layer that does not know counts as a partition."""
        return self.neurons or self.rows

    @property
    def shared(self) -> int:
        """The number of rows of the shared expert."""
        return self.offsets[0]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of rows of each routed expert."""
        return tuple(b - a for a, b in zip(self.offsets, self.offsets[1:]))

    @property
    def core(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the frozen core's tensors by name; none where rows are stored."""
        if self.composed is None:
            return {}
        given = {"gated": self.gated, "up_bias": self.up_bias, "gate_bias": self.gate_bias}
        return core_shapes(self.hidden, self.dense_neurons, self.output, **given)

    @property
    def own(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what is trained beside the core, by name; none where rows are stored."""
        return {} if self.composed is None else self.composed.own_shapes(self.core, self.experts + bool(self.shared))

    @property
    def parameters(self) -> int:
        """The number of weights in all matrices of the layer, router and low-rank term included."""
        router = 0 if self.router is None else self.router.parameters(self.hidden, self.experts)
        return count(self.core) + self._always + self._routed + router + self.rank * (self.hidden + self.output)

    @property
    def vectors(self) -> int:
        """The number of values in the biases of the experts, the output bias and the idle vectors."""
        composed = count(self.core, of_biases=True) + count(self.own, of_biases=True)
        of_rows = self.rows * (self.up_bias + self.gate_bias) if self.composed is None else composed
        return of_rows + self.output * (self.output_bias + self.experts * self.idle)

    @property
    def frozen(self) -> int:
        """How many of both are not trained: those of the core, and the output bias beside it."""
        core = count(self.core) + count(self.core, of_biases=True)
        return 0 if self.composed is None else core + self.output * self.output_bias

    def active_fraction(self, neurons: int, on: float | None = None) -> float:
        """Weights that one token uses / weights of a dense FFN of that many neurons; router and low-rank term included,
        biases left out.

        on: the mean number of routed experts on. Default: top_k, or all experts. With a threshold pass what was measured.
        """
        every = self.smear or (self.router is not None and self.router.inference in ("merged", "ensemble"))
        usual = self.experts if every or self.top_k is None else self.top_k
        on = usual if on is None else on
        return (self.parameters - self._routed * (1 - on / self.experts)) / (neurons * self._row)

    @property
    def _row(self) -> int:
        return self.hidden * (2 if self.gated else 1) + self.output

    @property
    def _routed(self) -> int:
        """The number of weights in the matrices of the routed experts; of composed rows what is their own."""
        if self.composed is None:
            return (self.rows - self.shared) * self._row
        return count(self.own) * (self.rows - self.shared) // self.rows

    @property
    def _always(self) -> int:
        """The same of the shared expert."""
        return self.shared * self._row if self.composed is None else count(self.own) - self._routed

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`. Raises InputError for fields that are unknown, missing or of no use."""
        try:
            fields = dict(data)
            fields["offsets"] = tuple(fields["offsets"])
            if fields.get("router") is not None:
                fields["router"] = RouterConfig(**fields["router"])
            if fields.get("composed") is not None:
                fields["composed"] = Composition(**fields["composed"])
            return cls(**fields)
        except (TypeError, KeyError, ValueError, UsageError) as error:
            raise InputError(f"the description of an MoE layer is damaged: {error}") from error
