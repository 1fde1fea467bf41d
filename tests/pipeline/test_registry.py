from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from installed import install
from moeify.errors import InputError, UsageError
from moeify.pipeline.each_layer import EachLayer
from moeify.pipeline.offers import PASSES, STRATEGIES
from moeify.pipeline.registry import find_pass, find_strategy, make_registry
from pipeline.steps import THINGS, FindThings, GroupThings


class OtherFinder(FindThings):
    """Another pass of the same name."""


def test_the_table_holds_the_passes_and_each_layer() -> None:
    table = make_registry(THINGS)
    assert [find_pass(table, name) for name in table] == [EachLayer, *THINGS]


def test_installed_packages_may_offer_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "things", {PASSES: {"group-things": "pipeline.steps:GroupThings"}})
    table = make_registry((FindThings,))
    assert list(table) == ["each-layer", "find-things", "group-things"]
    assert find_pass(table, "group-things") is GroupThings
    assert table.offers.package("group-things") == "things 1.0"
    assert table.faults() == {}


def test_a_pass_that_is_offered_twice_is_no_conflict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("old", "new"):
        install(tmp_path, monkeypatch, package, {PASSES: {"group-things": "pipeline.steps:GroupThings"}})
    assert find_pass(make_registry(()), "group-things") is GroupThings


def test_the_table_is_closed() -> None:
    table: Any = make_registry(THINGS).own
    with pytest.raises(TypeError, match="does not support item assignment"):
        table["find-things"] = OtherFinder


def test_two_passes_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^two passes are called 'find-things': pipeline.steps and .*test_registry$"):
        make_registry((FindThings, OtherFinder))


OFFERS: list[tuple[str, str, str, str]] = [
    ("a package that is gone", "x", "no_such_package:Pass", "cannot be loaded (ModuleNotFoundError: No module named"),
    ("a class that is gone", "x", "pipeline.steps:NoSuchPass", "cannot be loaded (AttributeError: module"),
    ("a module that leaves", "x", "leaves_at_once:Pass", "cannot be loaded (SystemExit: 3): mend or uninstall the package"),
    ("a function", "x", "pipeline.steps:nothing", "is no frozen dataclass: see docs/writing-a-pass.md"),
    ("a dataclass that can be changed", "thawed", "pipeline.roads:Thawed", "is no frozen dataclass"),
    ("half a pass", "half", "pipeline.roads:Half", "lacks uses, gives, keeps, rewrites, run: see docs/"),
    ("a pass of another name", "x", "pipeline.steps:GroupThings", "calls itself 'group-things'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "reason"), [o[1:] for o in OFFERS], ids=[o[0] for o in OFFERS])
def test_a_broken_offer_names_the_package_and_stops_nothing_else(
    name: str, value: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaves_at_once.py").write_text("raise SystemExit(3)")
    install(tmp_path, monkeypatch, "broken-things", {PASSES: {name: value}}, "0.3")
    table = make_registry(THINGS)
    with pytest.raises(UsageError) as error:
        find_pass(table, name)
    assert str(error.value).startswith(f"the pass {name!r} of the package broken-things 0.3 {reason}")
    assert "\n" not in str(error.value)
    assert table.faults() == {name: str(error.value)}
    assert find_pass(table, "find-things") is FindThings


def test_a_name_that_is_taken_is_refused_where_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "others", {PASSES: {"find-things": "pipeline.test_registry:OtherFinder"}})
    table = make_registry(THINGS)
    with pytest.raises(UsageError) as error:
        find_pass(table, "find-things")
    assert str(error.value) == (
        "the pass 'find-things' comes from moeify itself and from others 1.0: uninstall others 1.0, or rename it there"
    )
    assert find_pass(table, "group-things") is GroupThings


def test_a_module_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hangs_at_once.py").write_text("import time\ntime.sleep(100)")
    install(tmp_path, monkeypatch, "hanging-things", {PASSES: {"x": "hangs_at_once:Pass"}})
    monkeypatch.setenv("MOEIFY_IMPORT_SECONDS", "0.2")
    expected = (
        r"^loading the pass 'x' of the package hanging-things 1\.0 took longer than 0\.2 s and was ended; mend the module"
    )
    with pytest.raises(InputError, match=expected):
        find_pass(make_registry(THINGS), "x")


def test_an_unknown_pass_gets_the_nearest_name() -> None:
    table = make_registry(THINGS)
    with pytest.raises(UsageError, match=r"^unknown pass 'grup-things': did you mean 'group-things'\?$"):
        find_pass(table, "grup-things")
    with pytest.raises(UsageError, match=r"^unknown pass '': known: each-layer, find-things, group-things, split-things$"):
        find_pass(table, "")


def test_a_pass_that_a_recipe_had_from_a_package_leads_to_the_package() -> None:
    table = make_registry(THINGS).expecting({"sort-things": "sorters 2.1"})
    with pytest.raises(
        UsageError, match=r"^unknown pass 'sort-things': the recipe had it from the package sorters 2.1: install"
    ):
        find_pass(table, "sort-things")


def test_a_strategy_for_what_takes_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"group-things.share.mine": "pipeline.steps:FindThings", "grup-things.by.mine": "pipeline.steps:FindThings"}
    install(tmp_path, monkeypatch, "things", {STRATEGIES: names})
    table = make_registry(THINGS)
    with pytest.raises(UsageError) as error:
        find_strategy(table, "group-things.share.mine")
    assert str(error.value) == (
        "the strategy 'mine' of group-things.share of the package things 1.0 cannot be used: "
        "group-things takes no strategies of others as 'share'"
    )
    assert list(table.faults()) == ["group-things.share.mine", "grup-things.by.mine"]
