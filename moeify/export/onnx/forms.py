"""The forms in which the chosen experts of a layer are computed by operators that ONNX Runtime has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: unrolled: each expert by nodes of its own, on its tokens. gathered: the rows of the experts that any token chose, gathered,
#: for all tokens. masked: all rows for all tokens, h scaled by the gate. contrib: the operator `com.microsoft::MoE`.
Kind = Literal["unrolled", "gathered", "masked", "contrib"]

#: From so many experts on none is unrolled: ONNX Runtime would take seconds a layer to load the nodes.
FINE = 128


@dataclass(frozen=True)
class Form:
    """many: how calls of more than `few_tokens` tokens are computed; few: those of up to so many (None: `many` computes all).

    size: the rows of each routed expert where all have as many, else 0; unrolled takes no notice of it, contrib needs it.
    """

    many: Kind
    few: Kind | None = None
    few_tokens: int = 0
    size: int = 0

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return (self.many,) if self.few is None else (self.few, self.many)

    @property
    def suffix(self) -> str:
        """What the name of a body says of its form; nothing for the plain one."""
        parts = [] if self.few is None else [f"{self.few}-to-{self.few_tokens}"]
        parts += [] if self == Form("unrolled") else [self.many]
        parts += [f"of-{self.size}"] if self.size and set(self.kinds) != {"unrolled"} else []
        return "-".join(parts)

    def __str__(self) -> str:
        if self.few is None:
            return self.many
        return f"{self.few} up to {self.few_tokens} token{'s' * (self.few_tokens > 1)}, {self.many} beyond"


def plain_form(experts: int) -> Form:
    """What needs no knowledge of the layer but the number of its experts."""
    return Form("unrolled") if experts < FINE else Form("masked", "gathered", 1)
