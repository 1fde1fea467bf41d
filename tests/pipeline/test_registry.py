from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import pytest

from moeify.errors import UsageError
from moeify.pipeline import registry
from moeify.pipeline.each_layer import EachLayer
from moeify.pipeline.registry import ENTRY_POINTS, find_pass, make_registry
from pipeline.steps import THINGS, FindThings, GroupThings


class OtherFinder(FindThings):
    """Another pass of the same name."""


def offer(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    """Lets installed packages offer those passes."""
    points = [EntryPoint(f"offered-{i}", value, ENTRY_POINTS) for i, value in enumerate(values)]

    def found(*, group: str) -> list[EntryPoint]:
        return [point for point in points if point.group == group]

    monkeypatch.setattr(registry, "entry_points", found)


def test_the_table_holds_the_passes_and_each_layer() -> None:
    assert {"find-things": FindThings, "each-layer": EachLayer}.items() <= make_registry(THINGS).items()


def test_installed_packages_may_offer_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "pipeline.steps:GroupThings")
    assert set(make_registry((FindThings,))) == {"each-layer", "find-things", "group-things"}


def test_a_pass_that_is_offered_twice_is_no_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "pipeline.steps:GroupThings", "pipeline.steps:GroupThings")
    assert find_pass(make_registry(()), "group-things") is GroupThings


def test_the_table_is_closed() -> None:
    table: Any = make_registry(THINGS)
    with pytest.raises(TypeError, match="does not support item assignment"):
        table["find-things"] = OtherFinder


def test_two_passes_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^two passes are called 'find-things': pipeline.steps and .*test_registry$"):
        make_registry((FindThings, OtherFinder))


@pytest.mark.parametrize(
    ("caption", "value", "reason"),
    [
        ("a package that is gone", "no_such_package:Pass", "No module named 'no_such_package'"),
        ("a class that is gone", "pipeline.steps:NoSuchPass", "module 'pipeline.steps' has no attribute 'NoSuchPass'"),
    ],
)
def test_a_broken_offer_names_the_package(monkeypatch: pytest.MonkeyPatch, caption: str, value: str, reason: str) -> None:
    offer(monkeypatch, value)
    with pytest.raises(UsageError) as error:
        make_registry(THINGS)
    assert str(error.value) == f"the pass 'offered-0' of package '{value}' cannot be loaded: {reason}", caption


def test_an_unknown_pass_gets_the_nearest_name() -> None:
    table = make_registry(THINGS)
    with pytest.raises(UsageError, match=r"^unknown pass 'grup-things': did you mean 'group-things'\?$"):
        find_pass(table, "grup-things")
    with pytest.raises(UsageError, match=r"^unknown pass '': known: each-layer, find-things, group-things, split-things$"):
        find_pass(table, "")
