"""`moeify import`."""

from __future__ import annotations

from typing import Annotated

import typer

from moeify.cli.options import Example, Force, Json, Quiet, Verbose
from moeify.cli.screen import Screen
from moeify.cli.working import working


def import_(
    folder: Annotated[str, typer.Argument(metavar="STOCK", help="A checkpoint of a Mixtral, Qwen-MoE, GraniteMoe ...")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="OUT", help="The converted folder to write.")],
    example: Example = None,
    dtype: Annotated[str, typer.Option(metavar="fp32|bf16", help="Number type of the weights.")] = "fp32",
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Read a stock Mixture-of-Experts checkpoint as a converted model."""
    screen = Screen(json, quiet, verbose)
    with working(screen) as progress:
        from moeify import api

        found = api.import_hf(folder, output, example=example, dtype=dtype, force=force, progress=progress)
    if json:
        screen.data(found.to_json())
    else:
        screen.line(str(found))
