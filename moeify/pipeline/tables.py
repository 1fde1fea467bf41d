"""The tables of a recipe: a pass each, as plain data <-> the pass that they describe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from moeify.errors import UsageError
from moeify.pipeline.each_layer import EachLayer
from moeify.pipeline.options import from_options, to_options
from moeify.pipeline.registry import Registry, find_pass

#: Keys of a pass's table that say which passes there are, not how they work.
NOT_OPTIONS = frozenset({"name", "pass", "passes"})


def check_tables(steps: Any, where: str) -> None:
    """Raises UsageError where this is no list of tables of passes."""
    if not isinstance(steps, list) or not steps or not all(isinstance(step, dict) for step in steps):
        raise UsageError(f"{where} has no [[pass]] tables: a recipe is a list of passes")
    for step in steps:
        if not isinstance(step.get("name"), str):
            raise UsageError(f"{where}: a [[pass]] table has no name: {step}")
        if "passes" in step:
            raise UsageError(f"{where}: {step['name']} has no option 'passes': give it [[pass.pass]] tables")
        if "pass" in step:
            check_tables(step["pass"], f"{where}: {step['name']}")


def build_pass(step: Mapping[str, Any], registry: Registry) -> Any:
    """The pass. Raises UsageError for unknown passes, strategies and options."""
    options = {k: v for k, v in step.items() if k not in NOT_OPTIONS}
    kind = find_pass(registry, str(step.get("name", "")))
    if kind is EachLayer:
        if not step.get("pass"):
            raise UsageError("each-layer has no passes: give it [[pass.pass]] tables")
        options["passes"] = tuple(build_pass(s, registry) for s in step["pass"])
    elif "pass" in step:
        raise UsageError(f"{kind.name} holds no other passes: only each-layer does")
    return from_options(kind, options, kind.name, registry.offers)


def table_of(step: Any) -> dict[str, Any]:
    """The table of a pass, with every option."""
    plain = {"name": step.name, **to_options(step)}
    if isinstance(step, EachLayer):
        plain["pass"] = [table_of(s) for s in plain.pop("passes")]
    return plain


def pass_names(steps: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The names of all passes, those inside each-layer included."""
    for step in steps:
        yield str(step.get("name", ""))
        yield from pass_names(step.get("pass", ()))


def with_option(step: Mapping[str, Any], name: str, option: str, value: Any) -> dict[str, Any]:
    """The table with that option, or `option.option` of a strategy, set wherever the pass stands in it; None takes it out.

    Raises UsageError where the table names no such strategy.
    """
    changed = dict(step)
    if changed.get("name") == name:
        changed = _with_own_option(changed, option, value, name)
    if "pass" in changed:
        changed["pass"] = [with_option(s, name, option, value) for s in changed["pass"]]
    return changed


def _with_own_option(table: Mapping[str, Any], option: str, value: Any, where: str) -> dict[str, Any]:
    """The table of a pass or a strategy with that option set."""
    changed, (first, dot, rest) = dict(table), option.partition(".")
    if not dot:
        changed[option] = value
        if value is None:
            del changed[option]
        return changed
    strategy, of = changed.get(first), f"{where}.{first}"
    if not isinstance(strategy, Mapping | str):
        raise UsageError(f"{of}.{rest} cannot be set: the recipe names no strategy for {of}; set that first, {of}=KIND")
    changed[first] = _with_own_option({"kind": strategy} if isinstance(strategy, str) else strategy, rest, value, of)
    return changed


def named_in(steps: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What the tables name: passes, and strategies as `pass.option.kind`."""
    for step in steps:
        yield str(step["name"])
        for option, value in step.items():
            if isinstance(value, Mapping) and "kind" in value:
                yield f"{step['name']}.{option}.{value['kind']}"
        yield from named_in(step.get("pass", ()))
