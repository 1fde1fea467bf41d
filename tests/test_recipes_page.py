"""The page of recipes says what the code says."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from moeify.api.planning import registry
from moeify.errors import UsageError
from moeify.pipeline.options import option_types, strategies
from moeify.pipeline.recipe import Recipe, parse_setting, presets
from moeify_passes import PASSES, ClusterNeurons, Compensate, InsertRouter
from recipes_page import PAGE, page

TEXT = PAGE.read_text(encoding="utf-8")


def kinds(table: str) -> list[str]:
    """The first cells of the table under that mark."""
    after = TEXT.partition(f"<!-- {table} -->\n")[2].strip().partition("\n\n")[0]
    return [line.split("|")[1].strip() for line in after.splitlines()[2:]]


def test_the_table_of_recipes_is_up_to_date() -> None:
    assert page() == TEXT, "run python tests/recipes_page.py"
    assert kinds("recipes") == [f"`{name}`" for name in presets()]


@pytest.mark.parametrize(("table", "kind"), [("experts", ClusterNeurons), ("routers", InsertRouter)])
def test_every_strategy_has_a_row(table: str, kind: type) -> None:
    assert sorted(kinds(table)) == sorted(f"`{name}`" for name in strategies(option_types(kind)["by"]))


def test_every_compensation_has_a_row() -> None:
    rows = kinds("compensation")
    assert [row for row in rows if row.startswith("`compensate`")] == [
        f"`compensate`, `{kind}`" for kind in get_args(option_types(Compensate)["kind"])
    ]
    assert {row.partition(",")[0].strip("`") for row in rows} <= {step.name for step in PASSES}


def test_the_commands_name_recipes_that_there_are() -> None:
    assert set(re.findall(r"--recipe (\S+)", TEXT)) <= set(presets())


def test_every_setting_on_the_page_can_be_set() -> None:
    found = [quoted or plain for quoted, plain in re.findall(r"--set\s+(?:'([^']+)'|([^\s`]+))", TEXT)]
    assert len(found) >= 6
    for setting in found:
        name, option, value = parse_setting(setting.replace("=N", "=2"))
        assert any(builds(recipe.set(name, option, value)) for recipe in presets().values() if recipe.has(name)), setting


def builds(recipe: Recipe) -> bool:
    try:
        return bool(recipe.build(registry()).passes)
    except UsageError:  # the recipe may set what does not go with it
        return False
