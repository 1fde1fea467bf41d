"""`moeify export`."""

from __future__ import annotations

from typing import Annotated

import typer

from moeify.cli.options import AllowPickle, Example, Factory, Force, Json, Quiet, Verbose
from moeify.cli.screen import Screen
from moeify.cli.working import working
from moeify.errors import UsageError


def export(
    folder: Annotated[str, typer.Argument(metavar="OUT", help="A converted folder.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")],
    to: Annotated[str, typer.Option(metavar="onnx", help="The format to write.")] = "onnx",
    lowering: Annotated[
        str, typer.Option(metavar="auto|portable|standard|contrib|native", help="What an MoE layer becomes in the file.")
    ] = "auto",
    tokens: Annotated[str, typer.Option(metavar="N,N", help="Tokens of the calls that auto chooses for.")] = "1,128",
    factory: Factory = None,
    example: Example = None,
    force: Force = False,
    allow_pickle: AllowPickle = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Export a converted model to another format, checked against the original."""
    screen = Screen(json, quiet, verbose)
    with working(screen) as progress:
        from moeify import api

        report = api.export(
            folder,
            output,
            to=to,
            lowering=lowering,
            tokens=_counts(tokens),
            factory=factory,
            example=example,
            force=force,
            allow_pickle=allow_pickle,
            progress=progress,
        )
    if json:
        screen.data(report.to_json())
    else:
        screen.line(str(report))


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise UsageError(f"--tokens is {text!r}: give whole numbers with commas between, such as 1,128") from None
