"""The example plug-in through the command line, as if installed."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command_line import Outcome
from cli.tiny_models import TINY
from installed import PLUGIN, install, install_example
from moeify.pipeline.offers import PASSES, STRATEGIES

Run = Callable[[str], Outcome]

CONVERT = f"convert model.pt {TINY} --recipe pruned.toml --experts 8 --top-k 2 --calibrate rows.pt"


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where packages are installed."""
    return tmp_path_factory.mktemp("installed")


@pytest.fixture(autouse=True)
def recipe(tmp_path: Path) -> None:
    shutil.copy(PLUGIN / "pruned.toml", tmp_path)


def test_a_conversion_with_a_plugin_can_be_done_again(
    moeify: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_example(home, monkeypatch)
    done = moeify(f"{CONVERT} -o first --json")
    assert (done.code, done.err) == (0, "")
    for layer in done.data["layers"]:
        assert len(layer["sizes"]) == 7
        assert {"first_expert_share", "pruned_choices", "squared_error"} <= layer["measured"].keys()
    assert moeify(f"convert model.pt {TINY} -o again --recipe first/recipe.toml --calibrate rows.pt --quiet").code == 0
    weights = [(tmp_path / name / "moeify.safetensors").read_bytes() for name in ("first", "again")]
    assert weights[0] == weights[1]
    plan = moeify(f"{CONVERT} --dry-run --json").data
    assert [layer["experts"] for layer in plan["layers"]] == [7, 7]


def test_without_the_plugin_the_recipe_says_what_is_missing(
    moeify: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as while_installed:
        install_example(home, while_installed)
        assert moeify(f"{CONVERT} -o out --quiet").code == 0
    again = moeify(f"convert model.pt {TINY} -o again --recipe out/recipe.toml --calibrate rows.pt")
    assert again == Outcome(
        2, "", "moeify: error: cluster-neurons.by has no strategy 'output-norm': the recipe had it from the package "
        "moeify-example-plugin 0.1.0: install that\n",
    )  # fmt: skip
    recipe = tmp_path / "out" / "recipe.toml"
    recipe.write_text(recipe.read_text("utf-8").replace("output-norm", "random"), "utf-8")
    again = moeify(f"convert model.pt {TINY} -o again --recipe out/recipe.toml --calibrate rows.pt")
    assert again.err.startswith(
        "moeify: error: unknown pass 'prune-experts': the recipe had it from the package moeify-example-"
    )


def test_a_converted_model_loads_without_the_plugin(moeify: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as while_installed:
        install_example(home, while_installed)
        assert moeify(f"{CONVERT} -o out --quiet").code == 0
    assert moeify(f"evaluate out --data rows.pt {TINY} --quiet") == Outcome(0, "", "")


def test_a_setting_may_name_a_strategy_of_a_plugin(
    moeify: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_example(home, monkeypatch)
    assert moeify(f"convert model.pt {TINY} -o out --experts 4 --set cluster-neurons.by=output-norm").code == 0
    plugins = tomllib.loads((tmp_path / "out" / "recipe.toml").read_text("utf-8"))["plugins"]
    assert plugins == {"cluster-neurons.by.output-norm": "moeify-example-plugin 0.1.0"}


def test_a_misspelt_strategy_of_a_plugin_gets_the_nearest(moeify: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_example(home, monkeypatch)
    done = moeify(f"convert model.pt {TINY} -o out --set cluster-neurons.by=output-norms")
    assert (done.code, done.err) == (
        2, "moeify: error: cluster-neurons.by has no strategy 'output-norms': did you mean 'output-norm'?\n",
    )  # fmt: skip


def test_a_broken_plugin_is_told_of_and_in_nobodys_way(
    moeify: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "half_done.py").write_text("print('hello')\nimport no_such_module\n", "utf-8")
    points = {PASSES: {"do-half": "half_done:DoHalf"}, STRATEGIES: {"insert-router.by.half": "half_done:Half"}}
    install(home, monkeypatch, "half-done", points, "0.0.1")
    for line in ("--help", "--version", "recipes", "passes insert-router", "passes cluster-neurons"):
        done = moeify(line)
        assert (done.code, done.err) == (0, ""), line
        assert "hello" not in done.out
    assert moeify(f"convert model.pt {TINY} -o out --experts 4 --quiet") == Outcome(0, "", "")
    broken = "of the package half-done 0.0.1 cannot be loaded (ModuleNotFoundError: No module named 'no_such_module')"
    listed = moeify("passes")
    assert listed.code == 0
    assert "cluster-neurons" in listed.out
    assert [line.partition(": mend")[0] for line in listed.err.splitlines()] == [
        f"moeify: note: the pass 'do-half' {broken}",
        f"moeify: note: the strategy 'half' of insert-router.by {broken}",
    ]
    assert list(moeify("passes --json").data["faults"]) == ["do-half", "insert-router.by.half"]
    for line in ("passes do-half", f"convert model.pt {TINY} -o other --experts 4 --set insert-router.by=half"):
        done = moeify(line)
        assert (done.code, done.out) == (2, "")
        assert broken in done.err
        assert done.err.count("\n") == 1


def test_a_plugin_that_takes_a_name_of_moeify_is_refused(moeify: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {
        PASSES: {"split-experts": "moeify_example_plugin.prune_experts:PruneExperts"},
        STRATEGIES: {"cluster-neurons.by.random": "moeify_example_plugin.output_norm:OutputNorm"},
    }
    install(home, monkeypatch, "takers", points)
    done = moeify(f"convert model.pt {TINY} -o out --experts 4")
    refused = "comes from moeify itself and from takers 1.0: uninstall takers 1.0, or rename it there"
    assert done == Outcome(2, "", f"moeify: error: the pass 'split-experts' {refused}\n")
    listed = moeify("passes")
    assert listed.err.splitlines() == [
        f"moeify: note: the strategy 'random' of cluster-neurons.by {refused}",
        f"moeify: note: the pass 'split-experts' {refused}",
    ]
