"""`moeify passes`."""

from __future__ import annotations

from typing import Annotated

import typer

from moeify.cli.options import Json, Quiet, Verbose
from moeify.cli.pass_page import PassPage, pass_page
from moeify.cli.screen import Screen
from moeify.cli.working import working


def passes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A pass to explain.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """List the passes, or explain one: its options, strategies, and the facts it needs and gives."""
    screen = Screen(json, quiet, verbose)
    with working(screen):
        from moeify import api
        from moeify.pipeline.registry import find_pass

        table = api.registry()
        pages = [pass_page(kind) for kind in (table.values() if name is None else [find_pass(table, name)])]
    if json:
        screen.data({"passes": [page.to_json() for page in pages]} if name is None else pages[0].to_json())
    elif name is None:
        rows = [(p.name, "rewrite" if p.rewrites else "analysis", p.summary) for p in pages]
        screen.table(("pass", "kind", "what it does"), rows)
    else:
        _show(pages[0], screen)


def _show(page: PassPage, screen: Screen) -> None:
    screen.line(f"{page.name} ({'rewrite' if page.rewrites else 'analysis'})")
    screen.line()
    screen.line(page.doc)
    screen.line()
    for title, facts in (("needs", page.needs), ("uses", page.uses), ("gives", page.gives), ("keeps", page.keeps)):
        if facts:
            screen.line(f"{title}: {', '.join(facts)}")
    if page.options:
        screen.line()
        screen.table(("option", "type", "default"), [(o.name, o.type, o.default) for o in page.options])
    for option in page.options:
        for strategy in option.strategies:
            needs = f" Needs {', '.join(strategy.needs)}." if strategy.needs else ""
            screen.line(f'\n{option.name} = {{ kind = "{strategy.kind}" }}: {strategy.summary}{needs}')
            screen.table(("option", "type", "default"), [(o.name, o.type, o.default) for o in strategy.options])
