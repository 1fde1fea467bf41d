from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeify.api import registry
from moeify.errors import UsageError
from moeify.pipeline.each_layer import EachLayer
from moeify.pipeline.pipeline import Pipeline
from moeify.pipeline.recipe import Recipe, load_recipe, parse_setting, presets
from moeify.pipeline.registry import make_registry
from pipeline.steps import THINGS, FindThings, GroupThings, SplitThings

TABLE = make_registry(THINGS)

TEXT = """
name = "things"
description = "Groups things."
seed = 7

[[pass]]
name = "find-things"
layers = "last-half"

[[pass]]
name = "each-layer"
prefix = "dense"

[[pass.pass]]
name = "group-things"
groups = 8

[[pass.pass]]
name = "split-things"
"""

THINGS_RECIPE = Recipe.parse(TEXT, "things.toml")


def test_a_recipe_builds_its_pipeline() -> None:
    loop = EachLayer((GroupThings(groups=8), SplitThings()), prefix="dense")
    assert THINGS_RECIPE.build(TABLE) == Pipeline((FindThings(layers="last-half"), loop))
    assert (THINGS_RECIPE.name, THINGS_RECIPE.description, THINGS_RECIPE.seed) == ("things", "Groups things.", 7)


@pytest.mark.parametrize(
    ("caption", "text", "message"),
    [
        ("no TOML", "name = ", "r.toml is not valid TOML: Invalid value (at end of document)"),
        (
            "an unknown key", 'nam = "x"\n[[pass]]\nname = "find-things"',
            "r.toml has an unknown key 'nam': known are name, description, seed, plugins and [[pass]] tables",
        ),
        ("no passes", 'name = "x"', "r.toml has no [[pass]] tables: a recipe is a list of passes"),
        ("nothing at all", "", "r.toml has no [[pass]] tables: a recipe is a list of passes"),
        ("one pass instead of a list", '[pass]\nname = "x"', "r.toml has no [[pass]] tables: a recipe is a list of passes"),
        ("passes as words", 'pass = ["find-things"]', "r.toml has no [[pass]] tables: a recipe is a list of passes"),
        ("a negative seed", 'seed = -1\n[[pass]]\nname = "x"', "r.toml: seed is -1: give a whole number from 0"),
        ("a yes for a seed", 'seed = true\n[[pass]]\nname = "x"', "r.toml: seed is True: give a whole number from 0"),
        ("a text for a seed", 'seed = "1"\n[[pass]]\nname = "x"', "r.toml: seed is '1': give a whole number from 0"),
        ("plug-ins that are numbers", 'plugins = {x = 1}\n[[pass]]\nname = "x"',
         "r.toml: plugins is {'x': 1}: give a table of names and the packages that they come from"),
    ],
)  # fmt: skip
def test_a_text_that_is_no_recipe_is_refused(caption: str, text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        Recipe.parse(text, "r.toml")
    assert str(error.value) == message, caption


@pytest.mark.parametrize(
    ("caption", "text", "message"),
    [
        ("an unknown pass", '[[pass]]\nname = "fid-things"', "unknown pass 'fid-things': did you mean 'find-things'?"),
        (
            "a pass without a name", "[[pass]]\ngroups = 3",
            "r.toml: a [[pass]] table has no name: {'groups': 3}",
        ),
        (
            "an unknown option", '[[pass]]\nname = "find-things"\nlayer = "x"',
            "find-things has no option 'layer': did you mean 'layers'?",
        ),
        ("a wrong type", '[[pass]]\nname = "find-things"\nlayers = 3', "find-things.layers is 3: give str"),
        (
            "an empty each-layer", '[[pass]]\nname = "each-layer"',
            "each-layer has no passes: give it [[pass.pass]] tables",
        ),
        (
            "passes inside another pass", '[[pass]]\nname = "find-things"\n[[pass.pass]]\nname = "group-things"',
            "find-things holds no other passes: only each-layer does",
        ),
        (
            "a word outside the list", TEXT.replace('"dense"', '"thick"'),
            "each-layer.prefix is 'thick': give converted or dense",
        ),
        ("a size that is none", TEXT.replace('prefix = "dense"', 'memory = "much"'),
         "each-layer.memory is 'much': give a positive number of bytes, or a size such as 512MiB or 1GB"),
        (
            "a wrong order", '[[pass]]\nname = "group-things"\n[[pass]]\nname = "find-things"',
            "group-things needs FeedForwards, which find-things gives: put find-things before it",
        ),
    ],
)  # fmt: skip
def test_a_recipe_that_makes_no_pipeline_is_refused(caption: str, text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        Recipe.parse(text, "r.toml").build(TABLE)
    assert str(error.value) == message, caption


VALUES = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"))
KEYS = st.text("abcdefghijklmnopqrstuvwxyz_-. ", min_size=1).filter(lambda key: key not in ("name", "pass"))
STEPS = st.fixed_dictionaries(
    {"name": st.text(min_size=1)}, optional={"by": st.dictionaries(KEYS, VALUES, max_size=2)}
).flatmap(lambda step: st.dictionaries(KEYS, VALUES, max_size=3).map(lambda options: {**options, **step}))  # fmt: skip
LOOPS = st.tuples(st.text(min_size=1), st.lists(STEPS, min_size=1, max_size=3)).map(lambda p: {"name": p[0], "pass": p[1]})


@given(
    name=st.text(),
    description=st.text(),
    seed=st.integers(0, 2**63 - 1),
    steps=st.lists(STEPS | LOOPS, min_size=1, max_size=4),
    plugins=st.dictionaries(st.text(), st.text(), max_size=2),
)
def test_a_recipe_goes_to_toml_and_back(
    name: str, description: str, seed: int, steps: list[dict[str, Any]], plugins: dict[str, str]
) -> None:
    recipe = Recipe(name, tuple(steps), description, seed, plugins)
    assert Recipe.parse(recipe.to_toml(), "round trip") == recipe


@given(st.integers(1, 100), st.floats(0, 1), st.none() | st.integers(1, 5), st.sampled_from(["*", "last-half", "a.*"]))
def test_an_explicit_recipe_builds_the_same_pipeline(groups: int, share: float, limit: int | None, layers: str) -> None:
    options = {"groups": groups, "share": share, **({} if limit is None else {"limit": limit})}
    recipe = Recipe("x", ({"name": "find-things", "layers": layers}, {"name": "group-things", **options}))
    explicit = recipe.explicit(TABLE)
    assert explicit.build(TABLE) == recipe.build(TABLE)
    assert Recipe.parse(explicit.to_toml(), "x").build(TABLE) == recipe.build(TABLE)


def test_an_explicit_recipe_writes_every_default_down() -> None:
    explicit = THINGS_RECIPE.explicit(TABLE)
    loop = explicit.passes[1]
    assert (loop["prefix"], loop["memory"]) == ("dense", "1GiB")
    assert loop["pass"] == [{"name": "group-things", "groups": 8, "share": 0.5}, {"name": "split-things"}]
    assert explicit.explicit(TABLE) == explicit


def test_an_option_is_set_inside_each_layer_and_taken_out_by_none() -> None:
    changed = THINGS_RECIPE.set("group-things", "groups", 3)
    assert changed.passes[1]["pass"][0] == {"name": "group-things", "groups": 3}
    assert changed.set("group-things", "groups", None).passes[1]["pass"][0] == {"name": "group-things"}
    assert THINGS_RECIPE.passes[1]["pass"][0] == {"name": "group-things", "groups": 8}, "the recipe itself is as it was"


def test_an_option_of_a_strategy_is_set_and_the_others_stay() -> None:
    best = load_recipe("best").set("insert-router", "by.rank", 3)
    [router] = [step for step in best.passes[2]["pass"] if step["name"] == "insert-router"]
    assert router["by"] == {"kind": "gain-regression", "even_below": 0.4, "rank": 3}
    named = THINGS_RECIPE.set("group-things", "by", "plain").set("group-things", "by.top", 0.1)
    assert named.passes[1]["pass"][0] == {"name": "group-things", "groups": 8, "by": {"kind": "plain", "top": 0.1}}
    assert named.set("group-things", "by.top", None).passes[1]["pass"][0]["by"] == {"kind": "plain"}


def test_an_option_of_a_strategy_that_no_one_named_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        THINGS_RECIPE.set("group-things", "by.top", 0.1)
    reason = "the recipe names no strategy for group-things.by; set that first, group-things.by=KIND"
    assert str(error.value) == f"group-things.by.top cannot be set: {reason}"


def test_taking_out_an_option_that_is_not_there_changes_nothing() -> None:
    assert THINGS_RECIPE.set("group-things", "limit", None) == THINGS_RECIPE


def test_setting_an_option_of_a_pass_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        THINGS_RECIPE.set("group-thing", "groups", 3)
    expected = "recipe 'things' has no pass 'group-thing' to set groups of: did you mean 'group-things'?"
    assert str(error.value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=1", ("a", "b", 1)),
        ("a.b=0.5", ("a", "b", 0.5)),
        ("a.b=.5", ("a", "b", 0.5)),
        ("a.b= -.25 ", ("a", "b", -0.25)),
        ("a.b=.5.txt", ("a", "b", ".5.txt")),
        ("a.b=true", ("a", "b", True)),
        ("a.b = word", ("a", "b", "word")),
        ('a.b="3"', ("a", "b", "3")),
        ("a.b=x=y", ("a", "b", "x=y")),
        ("a.b=", ("a", "b", "")),
        ('a.by={kind = "plain", top = 0.1}', ("a", "by", {"kind": "plain", "top": 0.1})),
        ("a.by.top=0.1", ("a", "by.top", 0.1)),
    ],
)
def test_a_setting_is_read(text: str, expected: tuple[str, str, Any]) -> None:
    assert parse_setting(text) == expected


@pytest.mark.parametrize("text", ["", "a", "a=1", "a.b", ".b=1", "a.=1", "=1", "."])
def test_a_setting_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_setting(text)
    expected = f"--set {text!r} is not of the form PASS.OPTION=VALUE, such as cluster-neurons.experts=16"
    assert str(error.value) == expected


def test_a_recipe_is_loaded_by_name_or_path(tmp_path: Path) -> None:
    (tmp_path / "things.toml").write_text(TEXT, "utf-8")
    assert load_recipe(tmp_path / "things.toml") == THINGS_RECIPE
    assert load_recipe("emoe") == presets()["emoe"]


def test_an_unknown_recipe_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError) as error:
        load_recipe("emo")
    assert str(error.value) == "unknown recipe 'emo': did you mean 'emoe'? (or give a .toml file)"


@pytest.mark.parametrize(
    ("caption", "name", "content", "reason"),
    [
        ("a file that is not there", "absent.toml", None, "cannot be read: "),
        ("a file that is no text", "binary.toml", b"\xff\xfe\x00", "cannot be read: 'utf-8' codec can't decode byte"),
    ],
)
def test_a_recipe_file_that_cannot_be_read_is_named(
    tmp_path: Path, caption: str, name: str, content: bytes | None, reason: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        load_recipe(path)
    assert f"recipe {path} {reason}" in str(error.value), caption


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_shipped_recipe_builds_is_described_and_survives_being_written_out(name: str) -> None:
    recipe = presets()[name]
    assert recipe.description.endswith(".")
    assert load_recipe(name) == recipe
    explicit = recipe.explicit(registry())
    assert Recipe.parse(explicit.to_toml(), name).build(registry()) == recipe.build(registry())
