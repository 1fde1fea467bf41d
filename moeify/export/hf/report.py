"""What a stock checkpoint is, and how it agrees with the model that it was made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Agreement:
    """On the example inputs. distance: largest difference of a logit / largest logit, in sequences where no choice differs;
    None without such. alike: the share of pairs (token, layer) with the same chosen experts. tokens: compared.
    """

    distance: float | None
    alike: float
    tokens: int

    def __str__(self) -> str:
        apart = "not compared" if self.distance is None else f"{self.distance:.1e} of the largest"
        return f"same experts for {self.alike:.2%} of {self.tokens} tokens and layers, logits apart by {apart}"


@dataclass(frozen=True)
class HfReport:
    """path: the folder; model_type: of its class; shape: of its MoE layers, in words; lost: left out; size: in bytes."""

    path: str
    model_type: str
    shape: str
    lost: tuple[str, ...]
    agreement: Agreement
    size: int
    seconds: float

    def __str__(self) -> str:
        lines = [
            f"{self.path}: a {self.model_type} checkpoint, {self.size / 2**20:,.1f} MiB in {self.seconds:.0f} s",
            f"  {self.shape}",
            f"  {self.agreement}",
            *(f"  left out: {what}" for what in self.lost),
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
