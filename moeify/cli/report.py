"""`moeify report`."""

from __future__ import annotations

from typing import Annotated

import typer

from moeify.cli.options import AllowPickle, Device, Example, Factory, Force, Json, Quiet, Verbose, at_least
from moeify.cli.screen import Screen
from moeify.cli.working import working


def report(
    folder: Annotated[str, typer.Argument(metavar="OUT", help="A converted folder.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="The page to write, in place of OUT/report.html.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|PKG.MOD:CALLABLE", help="Data to measure load, entropy and co-activation on (text, tensors)."
        ),
    ] = None,
    tokens: Annotated[
        int,
        typer.Option(metavar="N", parser=at_least(2), help="Tokens of the data to use at most (rows, where it is not text)."),
    ] = 8192,
    dense: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The dense model, where what OUT was made from is not beside it.")
    ] = None,
    sweep: Annotated[str | None, typer.Option(metavar="DIR|FILE.jsonl", help="A sweep, for quality against budget.")] = None,
    bench: Annotated[str | None, typer.Option(metavar="FILE.json", help="A benchmark (bench --json), for speed.")] = None,
    factory: Factory = None,
    example: Example = None,
    device: Device = "cpu",
    force: Force = False,
    allow_pickle: AllowPickle = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write what is known of a converted model as one HTML page."""
    screen = Screen(json, quiet, verbose)
    with working(screen) as progress:
        from moeify import api

        found = api.report(
            folder, output, data=data, tokens=tokens, dense=dense, sweep=sweep, bench=bench, factory=factory, example=example,
            device=device, force=force, allow_pickle=allow_pickle, progress=progress,
        )  # fmt: skip
    if json:
        screen.data(found.to_json())
        return
    screen.line(found.verdict)
    if found.left_out:
        screen.note(f"the page has nothing to show of {', '.join(found.left_out)}: it says how to get them")
    screen.line(str(found.output))
