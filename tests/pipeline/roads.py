"""An option that is open to the strategies of other packages, such a strategy, and what is no pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable


@dataclass(frozen=True)
class Plain:
    kind: ClassVar[str] = "plain"


@runtime_checkable
class Way(Protocol):
    """The contract of an open option."""

    @property
    def kind(self) -> str: ...
    def go(self) -> int: ...


@dataclass(frozen=True)
class Far:
    """A strategy as another package offers it."""

    miles: int = 7

    kind: ClassVar[str] = "far"

    def go(self) -> int:
        return self.miles


@dataclass(frozen=True)
class Open:
    """An option that takes strategies of others."""

    by: Plain | Way = field(default_factory=Plain)


@dataclass(frozen=True)
class Half:
    """Keeps half of the contract."""

    name: ClassVar[str] = "half"
    needs: ClassVar[tuple[()]] = ()


@dataclass
class Thawed:
    """Can be changed."""

    name: ClassVar[str] = "thawed"
