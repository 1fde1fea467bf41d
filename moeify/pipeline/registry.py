"""The closed table of passes, passed as a value. Others join through the entry-point group `moeify.passes`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any

from moeify.errors import UsageError, did_you_mean
from moeify.pipeline.each_layer import EachLayer

#: Pass name -> pass class.
Registry = Mapping[str, type[Any]]

ENTRY_POINTS = "moeify.passes"


def make_registry(passes: Iterable[type[Any]]) -> Registry:
    """The table of those passes, EachLayer, and those that installed packages offer.

    Raises UsageError where two passes have one name or an entry point cannot be loaded.
    """
    table: dict[str, type[Any]] = {}
    every: list[type[Any]] = [EachLayer, *passes, *_offered()]
    for kind in every:
        if table.setdefault(kind.name, kind) is not kind:
            raise UsageError(f"two passes are called {kind.name!r}: {table[kind.name].__module__} and {kind.__module__}")
    return MappingProxyType(table)


def find_pass(registry: Registry, name: str) -> type[Any]:
    """The pass of that name. Raises UsageError with the nearest one otherwise."""
    if name not in registry:
        raise UsageError(f"unknown pass {name!r}: {did_you_mean(name, registry)}")
    return registry[name]


def _offered() -> list[type[Any]]:
    found = []
    for point in entry_points(group=ENTRY_POINTS):
        try:
            found.append(point.load())
        except Exception as error:
            raise UsageError(f"the pass {point.name!r} of package {point.value!r} cannot be loaded: {error}") from error
    return found
