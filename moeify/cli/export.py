"""`moeify export`."""

from __future__ import annotations

from typing import Annotated

import typer

from moeify.cli.options import AllowPickle, Example, Factory, Force, Json, Quiet, Verbose
from moeify.cli.screen import Screen
from moeify.cli.working import working


def export(
    folder: Annotated[str, typer.Argument(metavar="OUT", help="A converted folder.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")],
    to: Annotated[str, typer.Option(metavar="onnx", help="The format to write.")] = "onnx",
    precision: Annotated[str, typer.Option(metavar="fp32|fp16|int8|int4", help="How weights are stored.")] = "fp32",
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
            precision=precision,
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
