"""A recipe with the options set that the command line and `moeify.convert` offer by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moeify.errors import UsageError
from moeify.pipeline.recipe import Recipe, load_recipe

#: Options by pass: {"insert-router.top_k": 4}, or triples (pass, option, value).
Settings = Mapping[str, Any] | Sequence[tuple[str, str, Any]]


def configure(
    recipe: str | Path | Recipe = "emoe",
    *,
    experts: int | None = None,
    top_k: int | None = None,
    active: float | None = None,
    layers: str | None = None,
    tokens: int | None = None,
    settings: Settings = (),
    seed: int | None = None,
) -> Recipe:
    """The recipe with those options set; of a recipe that copies the FFN, experts are the copies.

    Raises UsageError where they contradict each other or the recipe.
    """
    if active is not None and top_k is not None:
        raise UsageError("--active and --top-k both set the budget: give one of them")
    plan = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    router = "insert-stochastic-experts" if plan.has("insert-stochastic-experts") else "insert-router"
    wanted: list[tuple[str, str, Any]] = [
        ("upcycle-experts", "copies", experts) if plan.has("upcycle-experts") else ("cluster-neurons", "experts", experts),
        (router, "top_k", top_k),
        ("find-feed-forward", "layers", layers),
        ("calibrate", "tokens", tokens),
    ]
    if plan.has("measure-importance"):  # it makes an expert of each group
        wanted += [("measure-importance", "groups", experts), ("measure-importance", "tokens", tokens)]
    if active is not None and plan.has("allocate-budget"):
        plan = plan.set("allocate-budget", "active", active)
    if active is not None and plan.has("keep-neurons"):
        plan = plan.set("keep-neurons", "active", active)
    elif active is not None:
        plan = plan.set("insert-router", "active", active).set("insert-router", "top_k", None)
    if top_k is not None and router == "insert-router":
        plan = plan.set("insert-router", "active", None)
    for name, option, value in wanted:
        plan = plan if value is None else plan.set(name, option, value)
    pairs = [(*_target(key), value) for key, value in settings.items()] if isinstance(settings, Mapping) else settings
    for name, option, value in pairs:
        plan = plan.set(name, option, value)
    if seed is not None and seed < 0:
        raise UsageError(f"seed is {seed}: give a whole number from 0")
    return plan if seed is None else replace(plan, seed=seed)


def _target(key: str) -> tuple[str, str]:
    name, dot, option = key.partition(".")
    if not dot:
        raise UsageError(f"setting {key!r} is not of the form pass.option, such as cluster-neurons.experts")
    return name, option
