"""The options that several commands share, each with its one sentence of help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from moeify.errors import UsageError


def at_least(bound: int) -> Callable[[str], int]:
    """A reader of whole numbers that are not below the bound."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = bound - 1
        if value < bound:
            raise typer.BadParameter(f"{text!r} is not a whole number from {bound}")
        return value

    return number


def fraction(text: str) -> float:
    """A reader of numbers above 0 and up to 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise typer.BadParameter(f"{text!r} is not a number above 0 and up to 1, such as 0.5")
    return value


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them. Raises UsageError."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option} is {text!r}: give whole numbers with commas between them") from error


Tokens = Annotated[
    int | None,
    typer.Option(metavar="N", parser=at_least(2), help="Tokens of the data to use at most (rows, where it is not text)."),
]

Calibrate = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE|PKG.MOD:CALLABLE", help="Data that passes may look at (text, tensors); repeated, several are mixed."
    ),
]

Factory = Annotated[
    str | None,
    typer.Option(
        metavar="PKG.MOD:CALLABLE", help="Callable without arguments that builds the module, where the model is a state_dict."
    ),
]
Example = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|PKG.MOD:CALLABLE", help="Example inputs of the model, where neither a config nor the first layer tells."
    ),
]
AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Unpickle modules of any class: runs what the file says."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]
Device = Annotated[str, typer.Option(metavar="cpu|cuda", help="Where to compute.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print times, figures of every layer, and tracebacks.")]
