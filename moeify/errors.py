"""The errors that a user can meet: one clear line each (what, where, which value, what next)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MoeifyError(Exception):
    """Something failed that the user can act on. The message is one line; the command exits with `exit_code`.

    Messages quote names out of files, which may hold line breaks and control characters: see `one_line`.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class UsageError(MoeifyError):
    """An option, recipe, pass or argument is wrong: nothing was read or written."""

    exit_code = 2


class InputError(MoeifyError):
    """A model, file or data set cannot be read, or holds what it should not."""


class ConversionError(MoeifyError):
    """A pass could not keep its promise (a distance too large, weights that do not fit)."""


class OutputError(MoeifyError):
    """A result could not be written; nothing that looks like one was left behind."""


class MissingExtraError(MoeifyError):
    """A package of an optional extra is absent."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package}: run pip install 'moeify[{extra}]'")


def one_line(text: str) -> str:
    """The text on one line, with control characters spelt out."""
    joined = " ".join(part for line in text.splitlines() if (part := line.strip()))
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in joined)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint to end an error with: the nearest known name, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
