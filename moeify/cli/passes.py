"""`moeify passes`."""

from __future__ import annotations

from typing import Annotated

import typer

from moeify.cli.options import Json, Quiet, Verbose
from moeify.cli.pass_page import OWN, PassPage, pass_page
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

        registry = api.registry()
        faults = registry.faults() if name is None else {}
        pages = [pass_page(registry, each) for each in (registry if name is None else [name]) if each not in faults]
    if json:
        every = {"passes": [page.to_json() for page in pages], "faults": faults}
        screen.data(every if name is None else pages[0].to_json())
    elif name is None:
        _list(pages, screen)
    else:
        _show(pages[0], screen)
    for fault in () if json else faults.values():
        screen.note(fault)


def _list(pages: list[PassPage], screen: Screen) -> None:
    """The passes, and the strategies that plug-ins add; where there are plug-ins, with the package of each."""
    added = [
        (strategy.kind, f"{page.name}.{option.name}", strategy.package, strategy.summary)
        for page in pages
        for option in page.options
        for strategy in option.strategies
        if strategy.package not in (OWN, page.package)
    ]
    rows = [(p.name, "rewrite" if p.rewrites else "analysis", p.package, p.summary) for p in pages]
    if added or any(page.package != OWN for page in pages):
        screen.table(("pass", "kind", "package", "what it does"), rows)
        screen.table(("strategy", "option", "package", "what it does"), added)
    else:
        screen.table(("pass", "kind", "what it does"), [(name, kind, text) for name, kind, _, text in rows])


def _show(page: PassPage, screen: Screen) -> None:
    source = "" if page.package == OWN else f", from {page.package}"
    screen.line(f"{page.name} ({'rewrite' if page.rewrites else 'analysis'}{source})")
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
            source = "" if strategy.package in (OWN, page.package) else f" From {strategy.package}."
            screen.line(f'\n{option.name} = {{ kind = "{strategy.kind}" }}: {strategy.summary}{needs}{source}')
            screen.table(("option", "type", "default"), [(o.name, o.type, o.default) for o in strategy.options])
