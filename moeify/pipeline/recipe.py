"""A recipe: a pipeline as plain data, in TOML. Shipped presets are recipes like any other."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import tomli_w

from moeify.errors import UsageError, did_you_mean
from moeify.pipeline.contract import Pass
from moeify.pipeline.each_layer import EachLayer
from moeify.pipeline.options import from_options, to_options
from moeify.pipeline.pipeline import Pipeline
from moeify.pipeline.registry import Registry, find_pass


@dataclass(frozen=True)
class Recipe:
    """A name, a line about it, a seed, and the tables of its passes (name and options; each-layer has a list `pass`)."""

    name: str
    passes: tuple[Mapping[str, Any], ...]
    description: str = ""
    seed: int = 0

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """From TOML. Raises UsageError naming `where` and the fault."""
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{where} is not valid TOML: {error}") from error
        for key in data.keys() - {"name", "description", "seed", "pass"}:
            raise UsageError(f"{where} has an unknown key {key!r}: known are name, description, seed and [[pass]] tables")
        seed, steps = data.get("seed", 0), data.get("pass", [])
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise UsageError(f"{where}: seed is {seed!r}: give a whole number from 0")
        _check_steps(steps, where)
        return cls(str(data.get("name", where)), tuple(steps), str(data.get("description", "")), seed)

    @classmethod
    def of(cls, passes: Iterable[Pass], seed: int = 0) -> Self:
        """The recipe of a pipeline that was written by hand."""
        return cls("by-hand", tuple(_plain(step) for step in passes), "A pipeline written by hand.", seed)

    def to_toml(self) -> str:
        head: dict[str, Any] = {"name": self.name, "description": self.description, "seed": self.seed}
        return tomli_w.dumps({**head, "pass": [dict(step) for step in self.passes]})

    def build(self, registry: Registry) -> Pipeline:
        """The pipeline. Raises UsageError for unknown passes, strategies and options, and for a wrong order."""
        return Pipeline(tuple(_build(step, registry) for step in self.passes))

    def explicit(self, registry: Registry) -> Recipe:
        """The same recipe with every option written out, so that a later change of a default does not change it."""
        return replace(self, passes=tuple(_plain(step) for step in self.build(registry).passes))

    def has(self, pass_name: str) -> bool:
        """Does that pass stand anywhere in it?"""
        return pass_name in _names(self.passes)

    def set(self, pass_name: str, option: str, value: Any) -> Recipe:
        """The recipe with one option set wherever that pass stands.

        Raises UsageError where the recipe has no such pass. A value None takes the option out.
        """
        if option in _NOT_OPTIONS:
            raise UsageError(f"{pass_name}.{option} cannot be set: the passes of a recipe stand in its TOML file")
        names = list(_names(self.passes))
        if pass_name not in names:
            raise UsageError(
                f"recipe {self.name!r} has no pass {pass_name!r} to set {option} of: {did_you_mean(pass_name, names)}"
            )
        return replace(self, passes=tuple(_set(step, pass_name, option, value) for step in self.passes))


#: Keys of a pass's table that say which passes there are, not how they work.
_NOT_OPTIONS = frozenset({"name", "pass", "passes"})


def load_recipe(name: str | Path) -> Recipe:
    """A preset by name, or a TOML file by path. Raises UsageError where there is neither."""
    known = presets()
    if str(name) in known:
        return known[str(name)]
    path = Path(name)
    if path.suffix != ".toml" and not path.is_file():
        raise UsageError(f"unknown recipe {str(name)!r}: {did_you_mean(str(name), known)} (or give a .toml file)")
    try:
        return Recipe.parse(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path} cannot be read: {error}") from error


def presets() -> dict[str, Recipe]:
    """The shipped recipes, by name."""
    folder = files("moeify") / "recipes"
    texts = {f.name: f.read_text("utf-8") for f in folder.iterdir() if f.name.endswith(".toml")}
    found = (Recipe.parse(text, name) for name, text in sorted(texts.items()))
    return {recipe.name: recipe for recipe in found}


def parse_setting(text: str) -> tuple[str, str, Any]:
    """`PASS.OPTION=VALUE` -> (pass, option, value); the value is TOML, or else a plain string."""
    target, equals, value = text.partition("=")
    name, dot, option = target.strip().partition(".")
    if not (equals and dot and name and option):
        raise UsageError(f"--set {text!r} is not of the form PASS.OPTION=VALUE, such as cluster-neurons.experts=16")
    try:
        return name, option, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, option, value.strip()


def _check_steps(steps: Any, where: str) -> None:
    if not isinstance(steps, list) or not steps or not all(isinstance(step, dict) for step in steps):
        raise UsageError(f"{where} has no [[pass]] tables: a recipe is a list of passes")
    for step in steps:
        if not isinstance(step.get("name"), str):
            raise UsageError(f"{where}: a [[pass]] table has no name: {step}")
        if "passes" in step:
            raise UsageError(f"{where}: {step['name']} has no option 'passes': give it [[pass.pass]] tables")
        if "pass" in step:
            _check_steps(step["pass"], f"{where}: {step['name']}")


def _build(step: Mapping[str, Any], registry: Registry) -> Any:
    options = {k: v for k, v in step.items() if k not in _NOT_OPTIONS}
    kind = find_pass(registry, str(step.get("name", "")))
    if kind is EachLayer:
        if not step.get("pass"):
            raise UsageError("each-layer has no passes: give it [[pass.pass]] tables")
        options["passes"] = tuple(_build(s, registry) for s in step["pass"])
    elif "pass" in step:
        raise UsageError(f"{kind.name} holds no other passes: only each-layer does")
    return from_options(kind, options, kind.name)


def _plain(step: Any) -> dict[str, Any]:
    plain = {"name": step.name, **to_options(step)}
    if isinstance(step, EachLayer):
        plain["pass"] = [_plain(s) for s in plain.pop("passes")]
    return plain


def _names(steps: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    for step in steps:
        yield str(step.get("name", ""))
        yield from _names(step.get("pass", ()))


def _set(step: Mapping[str, Any], name: str, option: str, value: Any) -> dict[str, Any]:
    changed = dict(step)
    if changed.get("name") == name:
        changed[option] = value
        if value is None:
            del changed[option]
    if "pass" in changed:
        changed["pass"] = [_set(s, name, option, value) for s in changed["pass"]]
    return changed
