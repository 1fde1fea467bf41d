"""`moeify recipes`."""

from __future__ import annotations

from typing import Annotated

import typer

from moeify.cli.options import Json, Quiet, Verbose
from moeify.cli.screen import Screen
from moeify.cli.working import working


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME|FILE.toml]", help="A recipe to print as TOML.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """List the shipped recipes, or print one of them."""
    screen = Screen(json, quiet, verbose)
    with working(screen):
        from moeify.pipeline.recipe import load_recipe, presets

        found = list(presets().values()) if name is None else [load_recipe(name)]
    if json and name is None:
        screen.data({"recipes": [{"name": r.name, "description": r.description} for r in found]})
    elif json:
        screen.data(found[0].to_plain())
    elif name is None:
        screen.table(("recipe", "description"), [(r.name, r.description) for r in found])
    else:
        screen.line(found[0].to_toml().rstrip())
