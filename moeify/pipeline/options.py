"""Plain data <-> dataclasses whose fields are options: what recipes, `--set` and the listing of passes share."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from moeify.errors import UsageError, did_you_mean
from moeify.pipeline.offers import NO_OFFERS, Offers


def from_options(kind: type[Any], options: Mapping[str, Any], where: str, offers: Offers = NO_OFFERS) -> Any:
    """An instance of the dataclass `kind` from plain values, types checked, strategies built from {kind = ...}.

    offers: strategies that installed packages add. Raises UsageError naming the option (`where.option`), the value and what
    is allowed.
    """
    known = option_types(kind)
    arguments = {}
    for name, value in options.items():
        if name not in known:
            hint = did_you_mean(name, known) if known else "it takes no options"
            raise UsageError(f"{where} has no option {name!r}: {hint}")
        arguments[name] = _coerce(value, known[name], f"{where}.{name}", offers)
    for spec in fields(kind):
        if spec.name not in arguments and _default(spec) is MISSING:
            raise UsageError(f"{where}.{spec.name} is missing: it has no default")
    return kind(**arguments)


def to_options(instance: Any) -> dict[str, Any]:
    """The inverse: every option that is not None, strategies as {kind = ..., ...}."""
    found: dict[str, Any] = {}
    for spec in fields(instance):
        value = getattr(instance, spec.name)
        if is_dataclass(value):
            value = {"kind": cast(Any, value).kind, **to_options(value)}
        if value is not None:
            found[spec.name] = value
    return found


def option_types(kind: type[Any]) -> dict[str, Any]:
    """Option name -> annotation, resolved."""
    hints = get_type_hints(kind)
    return {spec.name: hints[spec.name] for spec in fields(kind)}


def option_default(kind: type[Any], name: str) -> Any:
    """The default of an option; dataclasses.MISSING where there is none."""
    return next(_default(spec) for spec in fields(kind) if spec.name == name)


def strategies(annotation: Any) -> dict[str, type[Any]]:
    """The strategy classes that an annotation allows, by kind."""
    found = [member for member in _members(annotation) if is_dataclass(member) and hasattr(member, "kind")]
    return {cast(Any, member).kind: cast(type[Any], member) for member in found}


def contract_of(annotation: Any) -> type[Any] | None:
    """The protocol that other packages' strategies keep, where the annotation has one: then the option is open to them."""
    return next((cast(type[Any], member) for member in _members(annotation) if getattr(member, "_is_protocol", False)), None)


def type_text(annotation: Any, offered: Iterable[str] = ()) -> str:
    """How an option's type is shown: `int or none`, `one | softmax`, `random | balanced-k-means` and what kinds are offered."""
    closed = [member for member in _members(annotation) if member is not contract_of(annotation)]
    return " or ".join(dict.fromkeys((*map(_member_text, closed), *offered)))


def _default(spec: Field[Any]) -> Any:
    return spec.default if spec.default_factory is MISSING else spec.default_factory()


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _member_text(member: Any) -> str:
    if member is type(None):
        return "none"
    if get_origin(member) is Literal:
        return " or ".join(map(str, get_args(member)))
    return str(getattr(member, "kind", getattr(member, "__name__", member)))


def _coerce(value: Any, annotation: Any, where: str, offers: Offers) -> Any:
    own = strategies(annotation)
    offered = offers.kinds(where) if contract_of(annotation) else []
    if own and isinstance(value, str):
        value = {"kind": value}
    if own and isinstance(value, Mapping):
        if "kind" not in value:
            raise UsageError(f"{where} names no kind of strategy: give {{kind = ...}} with {' or '.join((*own, *offered))}")
        kind = value["kind"]
        full = f"{where}.{kind}"
        found = offers.find(full, own, contract_of(annotation))
        if found is None:
            hint = offers.unknown(full) or did_you_mean(str(kind), (*own, *offered))
            raise UsageError(f"{where} has no strategy {kind!r}: {hint}")
        return from_options(found, {k: v for k, v in value.items() if k != "kind"}, where, offers)
    for member in _members(annotation):
        if _fits(value, member):
            return None if member is type(None) else float(value) if member is float else value
    raise UsageError(f"{where} is {value!r}: give {type_text(annotation, offered)}")


def _fits(value: Any, member: Any) -> bool:
    if member is type(None):
        return value is None or value == "none"
    if get_origin(member) is Literal:
        return value in get_args(member)
    if member is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if member is int:
        return isinstance(value, int) and not isinstance(value, bool)
    kind = get_origin(member) or member
    return isinstance(kind, type) and isinstance(value, kind)
