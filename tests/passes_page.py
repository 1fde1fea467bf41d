"""docs/passes.md: written from the passes themselves. `python tests/passes_page.py` writes it anew."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "passes.md"
if __name__ == "__main__":
    root = PAGE.parent.parent
    sys.path[:0] = [str(root), str(root / "passes")]

from moeify.api.planning import registry  # noqa: E402 - the path comes first where this is run as a script
from moeify.cli.pass_page import OptionLine, PassPage, pass_page  # noqa: E402

HEAD = """# Passes

Every pass with its options, and the strategies that fill an option; `moeify passes NAME` prints the same. Set an option with
`--set PASS.OPTION=VALUE`, a strategy with `--set PASS.OPTION=KIND`, and an option of the strategy that the recipe names with
`--set PASS.OPTION.OPTION=VALUE`, such as `insert-router.by.rank=0.2`. An *analysis* finds facts, a *rewrite* changes what an
FFN becomes. [recipes.md](recipes.md) says which passes a recipe has.

This page is written by `python tests/passes_page.py`.
"""


def page() -> str:
    """The page as it should be, of moeify's own passes."""
    table = registry()
    pages = [pass_page(table, name) for name in table.own]
    return HEAD + "\n" + "".join(_overview(pages)) + "".join(line for each in pages for line in _section(each))


def _overview(pages: list[PassPage]) -> Iterator[str]:
    yield "| pass | kind | what it does |\n| --- | --- | --- |\n"
    for each in pages:
        yield f"| [{each.name}](#{each.name}) | {_kind(each)} | {_cell(each.summary)} |\n"


def _section(each: PassPage) -> Iterator[str]:
    yield f"\n## {each.name}\n\n{_kind(each).capitalize()}. {_text(each.doc)}\n"
    facts = [
        f"{title} {', '.join(f'`{fact}`' for fact in found)}"
        for title, found in (("needs", each.needs), ("uses", each.uses), ("gives", each.gives), ("keeps", each.keeps))
        if found
    ]
    if facts:
        yield f"\nFacts: {'; '.join(facts)}.\n"
    yield from _options(each.options)
    for option in each.options:
        if option.strategies:
            yield f"\n`{option.name}` is one of:\n\n| kind | what it is | options |\n| --- | --- | --- |\n"
        for strategy in option.strategies:
            own = ", ".join(f"`{o.name}` ({o.default})" for o in strategy.options) or "-"
            needs = f" Needs {', '.join(f'`{fact}`' for fact in strategy.needs)}." if strategy.needs else ""
            yield f"| `{strategy.kind}` | {_cell(strategy.summary)}{needs} | {own} |\n"


def _options(options: tuple[OptionLine, ...] | list[OptionLine]) -> Iterator[str]:
    if options:
        yield "\n| option | type | default |\n| --- | --- | --- |\n"
    for option in options:
        yield f"| `{option.name}` | {_cell(option.type)} | {_cell(option.default)} |\n"


def _kind(each: PassPage) -> str:
    return "rewrite" if each.rewrites else "analysis"


def _cell(text: str) -> str:
    """Without what a table or Markdown would take for its own."""
    return _text(text).replace(" | ", " or ").replace("|", "\\|")


def _text(text: str) -> str:
    return text.replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
