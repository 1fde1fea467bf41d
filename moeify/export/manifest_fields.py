"""Typed reading of parsed JSON: every fault is one line that names the file and the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from moeify.errors import InputError, did_you_mean

T = TypeVar("T", bound=str)
V = TypeVar("V")

_NOUNS = {
    str: "a text", int: "a whole number", bool: "true or false", float: "a number", dict: "a table", list: "a list",
    type(None): "null",
}  # fmt: skip


@dataclass(frozen=True)
class Fields:
    """One JSON table. where: the file, and the way to the table in it."""

    data: Mapping[str, Any]
    where: str

    @classmethod
    def of(cls, data: Any, where: str) -> Fields:
        if not isinstance(data, dict):
            raise InputError(f"{where}: is {_noun(data)}, not a table; convert the model again")
        return cls(data, where)

    def only(self, *known: str, optional: Sequence[str] = ()) -> None:
        """Raises InputError for a field that is not known, or missing and not optional."""
        for name in self.data:
            if name not in known and name not in optional:
                raise InputError(f"{self.where}: field {name!r} is unknown; {did_you_mean(name, (*known, *optional))}")
        for name in known:
            self._get(name)

    def text(self, name: str) -> str:
        return self._typed(name, str)

    def integer(self, name: str) -> int:
        return self._typed(name, int)

    def boolean(self, name: str) -> bool:
        return self._typed(name, bool)

    def number(self, name: str) -> float:
        value = self._get(name)
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else self._typed(name, float)

    def is_null(self, name: str) -> bool:
        return self._get(name) is None

    def choice(self, name: str, known: Sequence[T]) -> T:
        value = self.text(name)
        for option in known:
            if option == value:
                return option
        raise InputError(f"{self.where}: field {name} is {value!r}; {did_you_mean(value, known)}")

    def integers(self, name: str) -> tuple[int, ...]:
        values = self._typed(name, list)
        if not all(type(value) is int for value in values):
            raise InputError(f"{self.where}: field {name} is not a list of whole numbers")
        return tuple(values)

    def table(self, name: str) -> Fields:
        return Fields(self._typed(name, dict), f"{self.where}: {name}")

    def tables(self, name: str) -> tuple[Fields, ...]:
        return tuple(Fields.of(item, f"{self.where}: {name}[{i}]") for i, item in enumerate(self._typed(name, list)))

    def texts(self, name: str) -> dict[str, str]:
        """A table whose values are all texts."""
        table = self.table(name)
        return {key: table.text(key) for key in table.data}

    def _get(self, name: str) -> Any:
        if name not in self.data:
            raise InputError(f"{self.where}: field {name} is missing; convert the model again")
        return self.data[name]

    def _typed(self, name: str, kind: type[V]) -> V:
        value = self._get(name)
        if type(value) is not kind or not isinstance(value, kind):  # True is no number
            raise InputError(f"{self.where}: field {name} is {_noun(value)}, not {_NOUNS[kind]}; convert the model again")
        return value


def _noun(value: Any) -> str:
    return _NOUNS.get(type(value), type(value).__name__)
