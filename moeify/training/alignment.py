"""How an alignment goes, and what it did."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from moeify.errors import UsageError
from moeify.training.output_distance import DIVERGENCE, ERROR
from moeify.training.product_precision import Precision, check_precision

_WHOLE = ("steps", "tokens", "seed")
#: The learning rate where a model is far from the dense one: what suits SmolLM2-135M at half (benchmarks/quality).
LARGEST_RATE = 1.6e-3
#: From which distance on it is, by the kind of distance; of vectors by what suits a MiniLM.
_FAR = {DIVERGENCE: 0.7, ERROR: 0.16}


@dataclass(frozen=True)
class Alignment:
    """How an alignment goes.

    minutes: of wall time in all, the measuring included; steps: at most so many optimizer steps (None: no such limit); at least
    one of the two is given. learning_rate: in units of each tensor's root mean square; None: by the distance to go, as
    `rate_from` says. It rises for a twentieth of the steps and falls to zero along a cosine; with minutes it follows the clock,
    so that only runs that `steps` ends are the same again.
    tokens: of one step, in whole rows. clip: largest norm of all gradients together. seed: of the order of the rows.
    precision: of products; weights and their sums stay as they are: "auto" takes bfloat16 for float32 models where the
    processor has instructions for it.
    """

    minutes: float | None = 10.0
    steps: int | None = None
    learning_rate: float | None = None
    tokens: int = 512
    clip: float = 1.0
    seed: int = 0
    precision: Precision = "auto"

    @classmethod
    def parse(cls, text: str) -> Alignment:
        """Of "minutes=10", "steps=160, precision=float32" or the like; with steps and no minutes the clock has no say.

        Raises UsageError.
        """
        pairs = [part.partition("=") for part in text.split(",")]
        given: dict[str, Any] = {name.strip(): value.strip() for name, _, value in pairs}
        try:
            for name, value in given.items():
                given[name] = value if name == "precision" else (int if name in _WHOLE else float)(value)
            return cls(**({"minutes": None} if "steps" in given else {}) | given)
        except (TypeError, ValueError) as error:
            raise UsageError(f"align is {text!r}: write minutes=10, or options of moeify.Alignment between commas") from error

    def rate_from(self, distance: float, kind: str) -> float:
        """The learning rate for a model so far from the dense one, by a `kind` that `mean_distance` names: in proportion, up to
        LARGEST_RATE.

        Where little was lost, large steps do more harm than good: at 0.15 a rate of 2.5e-4 gains, 7.6e-4 does not.
        """
        return self.learning_rate or LARGEST_RATE * min(1.0, distance / _FAR[kind])

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if self.minutes is None and self.steps is None:
            raise UsageError("an alignment needs an end: give minutes, such as 10, or steps")
        for name, least in (("minutes", 0.0), ("learning_rate", 0.0), ("clip", 0.0)):
            value = getattr(self, name)
            if value is not None and not least < value < math.inf:
                raise UsageError(f"align.{name} is {value}: choose a number above {least:g}")
        for name in ("steps", "tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"align.{name} is {value}: choose 1 or more")


@dataclass(frozen=True)
class Aligned:
    """What an alignment did. before, after: the mean distance of the outputs on rows that were held out, of the `kind` that
    `mean_distance` names. best_step: whose weights the model has now; 0 is the model as it was."""

    steps: int
    best_step: int
    before: float
    after: float
    kind: str
    rows: int
    held_out: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the time."""
        plain = asdict(self)
        del plain["seconds"]
        return plain

    def __str__(self) -> str:
        return (
            f"aligned with the dense model in {self.steps} steps on {self.rows} rows; {self.kind} on {self.held_out} others"
            f" {self.before:.4g} -> {self.after:.4g}"
        )
