"""What the commands print that change nothing, in full."""

from __future__ import annotations

import tomllib
from collections.abc import Callable

import pytest

from cli.command_line import Outcome
from cli.tiny_models import TINY
from moeify.api import registry
from moeify.pipeline.recipe import presets

Run = Callable[[str], Outcome]
Golden = Callable[[str, str], None]

PAGES = {
    "passes": "passes",
    "passes-cluster-neurons": "passes cluster-neurons",
    "passes-each-layer": "passes each-layer",
    "recipes": "recipes",
    "recipes-emoe": "recipes emoe",
    "inspect": f"inspect model.pt {TINY}",
    "inspect-llama": "inspect llama",
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_reads_as_written_down(name: str, moeify: Run, golden: Golden) -> None:
    done = moeify(PAGES[name])
    assert (done.code, done.err) == (0, "")
    golden(f"cli/{name}.txt", done.out)


def test_a_converted_folder_shows_its_moe_layers(moeify: Run, golden: Golden) -> None:
    assert moeify(f"convert model.pt -o out {TINY} --experts 4 --top-k 2 --quiet").code == 0
    done = moeify(f"inspect out {TINY}")
    assert (done.code, done.err) == (0, "")
    golden("cli/inspect-converted.txt", done.out)


def test_every_pass_has_a_page(moeify: Run) -> None:
    listed = moeify("passes --json").data["passes"]
    assert [page["name"] for page in listed] == list(registry())
    for page in listed:
        alone = moeify(f"passes {page['name']} --json").data
        assert alone == page
        assert page["doc"].startswith(page["summary"][:20])
        text = moeify(f"passes {page['name']}")
        assert text.code == 0
        assert all(option["name"] in text.out for option in page["options"])


def test_every_recipe_prints_as_the_toml_that_it_is(moeify: Run) -> None:
    listed = moeify("recipes --json").data["recipes"]
    assert [recipe["name"] for recipe in listed] == list(presets())
    for name, recipe in presets().items():
        printed = tomllib.loads(moeify(f"recipes {name}").out)
        assert printed == moeify(f"recipes {name} --json").data
        assert tuple(printed["pass"]) == recipe.passes


@pytest.mark.parametrize("line", PAGES.values())
def test_quiet_prints_nothing(line: str, moeify: Run) -> None:
    assert moeify(f"{line} --quiet") == Outcome(0, "", "")


def test_an_inspection_gives_rows_as_data(moeify: Run) -> None:
    found = moeify(f"inspect model.pt {TINY} --json").data
    assert found["kind"] == "dense"
    assert [row["path"] for row in found["rows"]] == ["0", "1"]


@pytest.mark.parametrize("command", ["", "convert", "inspect", "evaluate", "passes", "recipes", "export"])
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_is_told_on_standard_output(command: str, option: str, moeify: Run) -> None:
    done = moeify(f"{command} {option}")
    assert (done.code, done.err) == (0, "")
    assert f"Usage: moeify {command}".rstrip() in done.out
    assert "completion" not in done.out


def test_the_version_is_told(moeify: Run) -> None:
    assert moeify("--version") == Outcome(0, "moeify 0.1.0\n", "")
