"""What an MoE layer does in training beyond its own mathematics: plain options, checked when they are set."""

from __future__ import annotations

import math
from dataclasses import dataclass

from moeify.errors import UsageError


@dataclass(frozen=True)
class TrainingRule:
    """The options of `moeify.set_training`, where each is explained. 0, None and False: off."""

    load_balance: float = 0.0
    z_loss: float = 0.0
    attach: bool | float = False

    def __post_init__(self) -> None:
        for name in LOSSES:
            _check_number(self, name, "a weight from 0, such as 0.01")
        _check_number(self, "attach", "True, False, or a factor such as 0.25 for 4 accumulated batches")
        if self.attach and not self.losses:
            raise UsageError(f"attach is set but no loss is: give one of {', '.join(LOSSES)} a weight")

    @property
    def losses(self) -> dict[str, float]:
        """The weights above 0, by the names of the losses."""
        return {name: weight for name in LOSSES if (weight := getattr(self, name))}


#: The losses on a layer's routing.
LOSSES = ("load_balance", "z_loss")


def _check_number(rule: TrainingRule, name: str, choice: str, below: float = math.inf) -> None:
    """Is the option a number from 0 to less than `below`?"""
    value = getattr(rule, name)
    if not (isinstance(value, int | float) and 0 <= value < below):
        raise UsageError(f"{name} is {value!r}: choose {choice}")
