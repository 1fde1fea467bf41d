"""All passes by name, as a value: the closed table of moeify's own, and what installed packages offer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Self

from moeify.errors import MoeifyError, UsageError, did_you_mean
from moeify.pipeline.contract import Pass
from moeify.pipeline.each_layer import EachLayer
from moeify.pipeline.offers import Offers, described, find_offers
from moeify.pipeline.options import contract_of, option_types, strategies


@dataclass(frozen=True)
class Registry:
    """own: moeify's passes by name. offers: those of installed packages, loaded when they are named."""

    own: Mapping[str, type[Any]]
    offers: Offers

    def __iter__(self) -> Iterator[str]:
        """The names of all passes."""
        return iter(dict.fromkeys((*self.own, *self.offers.passes())))

    def expecting(self, packages: Mapping[str, str]) -> Self:
        """The same table for a recipe that says which packages its passes and strategies came from."""
        return replace(self, offers=replace(self.offers, expected=packages))

    def faults(self) -> dict[str, str]:
        """What is offered and cannot be used: name -> why, in one line."""
        found = {}
        for name in self.offers.by_name:
            try:
                find_strategy(self, name) if "." in name else find_pass(self, name)
            except MoeifyError as error:
                found[name] = str(error)
        return found


def make_registry(passes: Iterable[type[Any]]) -> Registry:
    """The table of those passes, EachLayer, and what installed packages offer. Raises UsageError where two have one name."""
    table: dict[str, type[Any]] = {}
    every: list[type[Any]] = [EachLayer, *passes]
    for kind in every:
        if table.setdefault(kind.name, kind) is not kind:
            raise UsageError(f"two passes are called {kind.name!r}: {table[kind.name].__module__} and {kind.__module__}")
    return Registry(MappingProxyType(table), find_offers())


def find_pass(registry: Registry, name: str) -> type[Any]:
    """The pass of that name. Raises UsageError with the nearest one otherwise, or with the fault of the package it is in."""
    found = registry.offers.find(name, registry.own, Pass)
    if found is None:
        raise UsageError(f"unknown pass {name!r}: {registry.offers.unknown(name) or did_you_mean(name, registry)}")
    return found


def find_strategy(registry: Registry, name: str) -> type[Any]:
    """The strategy `pass.option.kind`. Raises UsageError where it is none, or nothing of that kind may be offered there."""
    option, _, _ = name.rpartition(".")
    step, _, field = option.partition(".")
    annotation = option_types(find_pass(registry, step)).get(field)
    contract = contract_of(annotation)
    found = None if contract is None else registry.offers.find(name, strategies(annotation), contract)
    if found is None:
        raise UsageError(
            f"{described(name)} of the package {registry.offers.package(name)} cannot be used: {step} takes no strategies "
            f"of others as {field!r}"
        )
    return found
