"""What there is to know about a pass, as data: read off its dataclass."""

from __future__ import annotations

import inspect
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, is_dataclass
from typing import TYPE_CHECKING, Any

from moeify.errors import MoeifyError, UsageError

if TYPE_CHECKING:
    from moeify.pipeline.registry import Registry

#: Where a pass or strategy comes from that is no plug-in's.
OWN = "moeify"


@dataclass(frozen=True)
class OptionLine:
    """An option: its type in words, its default as TOML would have it, and the strategies it chooses from."""

    name: str
    type: str
    default: str
    strategies: tuple[StrategyLine, ...] = ()


@dataclass(frozen=True)
class StrategyLine:
    """A strategy of an option: the kind that names it, its package, a sentence, the facts it needs, its own options."""

    kind: str
    package: str
    summary: str
    needs: tuple[str, ...]
    options: tuple[OptionLine, ...]


@dataclass(frozen=True)
class PassPage:
    """A pass. package: the plug-in that offers it, with its version. The facts are those with default options."""

    name: str
    package: str
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


def pass_page(registry: Registry, name: str) -> PassPage:
    """The page of a pass. Raises UsageError where there is no such pass, or its plug-in cannot be loaded."""
    from moeify.pipeline.registry import find_pass

    kind = find_pass(registry, name)
    doc = inspect.getdoc(kind) or ""
    return PassPage(
        name=kind.name,
        package=registry.offers.package(name) or OWN,
        rewrites=kind.rewrites,
        summary=_summary(doc),
        doc=doc,
        needs=_facts(kind, "needs"),
        uses=_facts(kind, "uses"),
        gives=_facts(kind, "gives"),
        keeps=_facts(kind, "keeps"),
        options=_options(kind, name, registry),
    )


def _options(kind: type[Any], where: str, registry: Registry) -> tuple[OptionLine, ...]:
    from moeify.pipeline.options import option_default, option_types, type_text

    lines = []
    for name, annotation in option_types(kind).items():
        found = _strategies(annotation, f"{where}.{name}", registry)
        text = type_text(annotation, [line.kind for line in found])
        lines.append(OptionLine(name, text, _default_text(option_default(kind, name)), found))
    return tuple(lines)


def _strategies(annotation: Any, option: str, registry: Registry) -> tuple[StrategyLine, ...]:
    """The option's own strategies, and those of plug-ins that can be loaded."""
    from moeify.pipeline.options import strategies
    from moeify.pipeline.registry import find_strategy

    found = [_strategy(kind, OWN, option, registry) for kind in strategies(annotation).values()]
    for name in registry.offers.kinds(option):
        full = f"{option}.{name}"
        with suppress(MoeifyError):
            found.append(_strategy(find_strategy(registry, full), registry.offers.package(full) or OWN, option, registry))
    return tuple(found)


def _strategy(kind: type[Any], package: str, option: str, registry: Registry) -> StrategyLine:
    summary = _summary(inspect.getdoc(kind) or "")
    return StrategyLine(kind.kind, package, summary, _facts(kind, "needs"), _options(kind, option, registry))


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
