"""Passes and strategies that installed packages add, by name. None of their code runs before its name is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from moeify.data.import_limit import import_limit
from moeify.data.importable import one_line
from moeify.errors import MoeifyError, UsageError

#: The entry-point groups. A pass is offered under its name, a strategy under `pass.option.kind`.
PASSES = "moeify.passes"
STRATEGIES = "moeify.strategies"

_PAGE = "see docs/writing-a-pass.md"


@dataclass(frozen=True)
class Offer:
    """One entry point of an installed package."""

    point: EntryPoint

    @property
    def package(self) -> str:
        """Name and version of the package; its module where it has no metadata."""
        dist = self.point.dist
        return self.point.value.partition(":")[0].partition(".")[0] if dist is None else f"{dist.name} {dist.version}"

    def load(self, contract: type[Any]) -> type[Any]:
        """The class. Raises UsageError that names the package where it cannot be imported or does not keep the contract."""
        what = f"{described(self.point.name)} of the package {self.package}"
        try:
            with import_limit(f"loading {what}"):
                found = self.point.load()
        except MoeifyError:
            raise
        except (Exception, SystemExit) as error:
            raise UsageError(f"{what} cannot be loaded ({one_line(error)}): mend or uninstall the package") from error
        if fault := _fault(found, self.point.name, contract):
            raise UsageError(f"{what} {fault}: {_PAGE}")
        assert isinstance(found, type)
        return found


@dataclass(frozen=True)
class Offers:
    """All offers, by name. expected: name -> the package that a recipe had it from when it was written."""

    by_name: Mapping[str, tuple[Offer, ...]] = field(default_factory=dict)
    expected: Mapping[str, str] = field(default_factory=dict)

    def passes(self) -> list[str]:
        return [name for name in self.by_name if "." not in name]

    def kinds(self, option: str) -> list[str]:
        """The kinds of strategy that are offered for `pass.option`."""
        return [name.rpartition(".")[2] for name in self.by_name if name.rpartition(".")[0] == option and "." in name]

    def package(self, name: str) -> str | None:
        """The package that offers it, with its version."""
        return self.by_name[name][0].package if name in self.by_name else None

    def find(self, name: str, own: Mapping[str, type[Any]], contract: type[Any] | None) -> type[Any] | None:
        """The class of that name: one of `own` (by the last part of the name), or an offered one; None where there is neither.

        Raises UsageError where two claim the name, or an offered one cannot be loaded.
        """
        offers = self.by_name.get(name, ()) if contract is not None else ()
        there = own.get(name.rpartition(".")[2])
        claims = ["moeify itself"] * (there is not None) + [o.package for o in {o.point.value: o for o in offers}.values()]
        if len(claims) > 1:
            raise UsageError(
                f"{described(name)} comes from {' and from '.join(claims)}: uninstall {claims[-1]}, or rename it there"
            )
        return there if contract is None or not offers else offers[0].load(contract)

    def unknown(self, name: str) -> str | None:
        """Where to get what is not there, if the recipe knows it."""
        source = self.expected.get(name)
        return source and f"the recipe had it from the package {source}: install that"


NO_OFFERS = Offers()


def find_offers() -> Offers:
    """What the installed packages offer. Reads metadata only."""
    found: dict[str, tuple[Offer, ...]] = {}
    for group in (PASSES, STRATEGIES):
        for point in entry_points(group=group):
            found[point.name] = (*found.get(point.name, ()), Offer(point))
    return Offers(dict(sorted(found.items())))


def described(name: str) -> str:
    """`the pass 'x'`, or `the strategy 'x' of cluster-neurons.by`."""
    option, dot, kind = name.rpartition(".")
    return f"the strategy {kind!r} of {option}" if dot else f"the pass {name!r}"


def _fault(found: Any, name: str, contract: type[Any]) -> str | None:
    if not isinstance(found, type) or not getattr(getattr(found, "__dataclass_params__", None), "frozen", False):
        return "is no frozen dataclass"
    if lacks := [member for member in _members(contract) if not hasattr(found, member)]:
        return f"lacks {', '.join(lacks)}"
    calls, own = ("kind", name.rpartition(".")[2]) if "." in name else ("name", name)
    return None if getattr(found, calls) == own else f"calls itself {getattr(found, calls)!r}"


def _members(contract: type[Any]) -> Iterable[str]:
    """What the protocol, and those that it builds on, ask for."""
    protocols = (base for base in contract.__mro__ if getattr(base, "_is_protocol", False))
    return (member for base in protocols for member in vars(base) if not member.startswith("_"))
