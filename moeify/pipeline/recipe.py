"""A recipe: a pipeline as plain data, in TOML. Shipped presets are recipes like any other."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import tomli_w

from moeify.errors import UsageError, did_you_mean
from moeify.pipeline.contract import Pass
from moeify.pipeline.pipeline import Pipeline
from moeify.pipeline.registry import Registry
from moeify.pipeline.tables import NOT_OPTIONS, build_pass, check_tables, named_in, pass_names, table_of, with_option


@dataclass(frozen=True)
class Recipe:
    """A name, a line about it, a seed, and the tables of its passes (name and options; each-layer has a list `pass`).

    plugins: pass, or pass.option.kind of a strategy -> the package that it comes from, where that is not moeify.
    """

    name: str
    passes: tuple[Mapping[str, Any], ...]
    description: str = ""
    seed: int = 0
    plugins: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """From TOML. Raises UsageError naming `where` and the fault."""
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{where} is not valid TOML: {error}") from error
        for key in data.keys() - {"name", "description", "seed", "plugins", "pass"}:
            raise UsageError(
                f"{where} has an unknown key {key!r}: known are name, description, seed, plugins and [[pass]] tables"
            )
        seed, steps, plugins = data.get("seed", 0), data.get("pass", []), data.get("plugins", {})
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise UsageError(f"{where}: seed is {seed!r}: give a whole number from 0")
        if not isinstance(plugins, dict) or not all(isinstance(package, str) for package in plugins.values()):
            raise UsageError(f"{where}: plugins is {plugins!r}: give a table of names and the packages that they come from")
        check_tables(steps, where)
        return cls(str(data.get("name", where)), tuple(steps), str(data.get("description", "")), seed, plugins)

    @classmethod
    def of(cls, passes: Iterable[Pass], seed: int = 0) -> Self:
        """The recipe of a pipeline that was written by hand."""
        return cls("by-hand", tuple(table_of(step) for step in passes), "A pipeline written by hand.", seed)

    def to_plain(self) -> dict[str, Any]:
        """What the TOML file holds."""
        plugins = {"plugins": dict(self.plugins)} if self.plugins else {}
        head = {"name": self.name, "description": self.description, "seed": self.seed, **plugins}
        return {**head, "pass": [dict(step) for step in self.passes]}

    def to_toml(self) -> str:
        return tomli_w.dumps(self.to_plain())

    def build(self, registry: Registry) -> Pipeline:
        """The pipeline. Raises UsageError for unknown passes, strategies and options, and for a wrong order."""
        known = registry.expecting(self.plugins)
        return Pipeline(tuple(build_pass(step, known) for step in self.passes))

    def explicit(self, registry: Registry) -> Recipe:
        """The same recipe with every option written out, so that a later change of a default does not change it, and with
        the packages that its passes and strategies come from."""
        passes = tuple(table_of(step) for step in self.build(registry).passes)
        packages = {name: registry.offers.package(name) for name in named_in(passes)}
        return replace(self, passes=passes, plugins={name: package for name, package in packages.items() if package})

    def has(self, pass_name: str) -> bool:
        """Does that pass stand anywhere in it?"""
        return pass_name in pass_names(self.passes)

    def set(self, pass_name: str, option: str, value: Any) -> Recipe:
        """The recipe with one option set wherever that pass stands; `by.rank` is the option of the strategy that fills `by`.

        Raises UsageError where the recipe has no such pass, or names no such strategy. A value None takes the option out.
        """
        if option in NOT_OPTIONS:
            raise UsageError(f"{pass_name}.{option} cannot be set: the passes of a recipe stand in its TOML file")
        names = list(pass_names(self.passes))
        if pass_name not in names:
            raise UsageError(
                f"recipe {self.name!r} has no pass {pass_name!r} to set {option} of: {did_you_mean(pass_name, names)}"
            )
        return replace(self, passes=tuple(with_option(step, pass_name, option, value) for step in self.passes))


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
    except (OSError, ValueError) as error:  # a path with a zero, bytes that are no UTF-8
        hint = f"; shipped recipes are {', '.join(known)}" if isinstance(error, FileNotFoundError) else ""
        raise UsageError(f"recipe {path} cannot be read: {getattr(error, 'strerror', None) or error}{hint}") from error


def presets() -> dict[str, Recipe]:
    """The shipped recipes, by name."""
    folder = files("moeify") / "recipes"
    texts = {f.name: f.read_text("utf-8") for f in folder.iterdir() if f.name.endswith(".toml")}
    found = (Recipe.parse(text, name) for name, text in sorted(texts.items()))
    return {recipe.name: recipe for recipe in found}


def parse_setting(text: str) -> tuple[str, str, Any]:
    """`PASS.OPTION=VALUE` -> (pass, option, value); the value is TOML, a number like `.5`, or else a plain string."""
    target, equals, value = text.partition("=")
    name, dot, option = target.strip().partition(".")
    if not (equals and dot and name and option):
        raise UsageError(f"--set {text!r} is not of the form PASS.OPTION=VALUE, such as cluster-neurons.experts=16")
    value = re.sub(r"^\s*([+-]?)(\.\d+)\s*$", r"\g<1>0\2", value)  # TOML wants a digit before the point
    try:
        return name, option, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, option, value.strip()
