"""`moeify write`."""

from __future__ import annotations

from typing import Annotated

import typer

from moeify.cli.options import Device, Force, Json, Quiet, Verbose, at_least
from moeify.cli.screen import Screen
from moeify.cli.working import working


def write(
    model: Annotated[
        str, typer.Argument(help="The dense model: a Hugging Face folder or GGUF file of a causal language model.")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE.jsonl", help="The file to write, a row of text a line.")
    ],
    tokens: Annotated[int, typer.Option(metavar="N", parser=at_least(2), help="Tokens to write.")] = 16384,
    temperature: Annotated[
        float, typer.Option(metavar="T", help="Below 1 the likely tokens are drawn more often than the model says.")
    ] = 0.8,
    window: Annotated[int, typer.Option(metavar="N", parser=at_least(2), help="Tokens of a row at most.")] = 512,
    seed: Annotated[
        int, typer.Option(metavar="N", parser=at_least(0), help="Seed of the draws; the same seed gives the same file.")
    ] = 0,
    short: Annotated[
        bool, typer.Option("--short", help="Cut rows to paragraphs and pieces of 1 to 32 words, for sentence encoders.")
    ] = False,
    device: Device = "cpu",
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Let a dense model write text to calibrate on."""
    screen = Screen(json, quiet, verbose)
    with working(screen) as progress:
        from moeify import api

        found = api.write_text(
            model, output, tokens=tokens, temperature=temperature, window=window, seed=seed, short=short, device=device,
            force=force, progress=progress,
        )  # fmt: skip
    if json:
        screen.data(found.to_json())
    else:
        screen.line(f"{found}; to calibrate on, beside text of yours: --calibrate TEXT --calibrate {found.output}")
