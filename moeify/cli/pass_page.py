"""What there is to know about a pass, as data: read off its dataclass."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, asdict, dataclass, is_dataclass
from typing import Any

from moeify.errors import UsageError


@dataclass(frozen=True)
class OptionLine:
    """An option: its type in words, its default as TOML would have it, and the strategies it chooses from."""

    name: str
    type: str
    default: str
    strategies: tuple[StrategyLine, ...] = ()


@dataclass(frozen=True)
class StrategyLine:
    """A strategy of an option: the kind that names it, a sentence, the facts it needs, its own options."""

    kind: str
    summary: str
    needs: tuple[str, ...]
    options: tuple[OptionLine, ...]


@dataclass(frozen=True)
class PassPage:
    """A pass. The facts are those of the pass with default options."""

    name: str
    rewrites: bool
    summary: str
    doc: str
    needs: tuple[str, ...]
    uses: tuple[str, ...]
    gives: tuple[str, ...]
    keeps: tuple[str, ...]
    options: tuple[OptionLine, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def pass_page(kind: type[Any]) -> PassPage:
    """The page of a pass class."""
    doc = inspect.getdoc(kind) or ""
    return PassPage(
        name=kind.name,
        rewrites=kind.rewrites,
        summary=_summary(doc),
        doc=doc,
        needs=_facts(kind, "needs"),
        uses=_facts(kind, "uses"),
        gives=_facts(kind, "gives"),
        keeps=_facts(kind, "keeps"),
        options=_options(kind),
    )


def _options(kind: type[Any]) -> tuple[OptionLine, ...]:
    from moeify.pipeline.options import option_default, option_types, strategies, type_text

    lines = []
    for name, annotation in option_types(kind).items():
        found = [_strategy(strategy) for strategy in strategies(annotation).values()]
        lines.append(OptionLine(name, type_text(annotation), _default_text(option_default(kind, name)), tuple(found)))
    return tuple(lines)


def _strategy(kind: type[Any]) -> StrategyLine:
    return StrategyLine(kind.kind, _summary(inspect.getdoc(kind) or ""), _facts(kind, "needs"), _options(kind))


def _default_text(value: Any) -> str:
    if value is MISSING:
        return "required"
    if value is None:
        return "none"
    if is_dataclass(value):
        return str(getattr(value, "kind", type(value).__name__))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _summary(doc: str) -> str:
    """The first sentence of a docstring."""
    paragraph = " ".join(doc.split("\n\n")[0].split())
    sentence, stop, _ = paragraph.partition(". ")
    return sentence + "." if stop else paragraph


def _facts(kind: type[Any], which: str) -> tuple[str, ...]:
    value = getattr(kind, which, ())
    if isinstance(value, property):  # the options decide
        try:
            value = getattr(kind(), which)
        except (TypeError, UsageError):
            return ("depends on the options",)
    return tuple(fact.__name__ for fact in value)
