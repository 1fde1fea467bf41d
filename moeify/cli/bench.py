"""`moeify bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moeify.cli.options import AllowPickle, Example, Factory, Json, Quiet, Verbose, at_least, numbers
from moeify.cli.screen import Screen
from moeify.cli.working import working
from moeify.errors import UsageError

if TYPE_CHECKING:
    from moeify.speed.speed_report import SpeedReport


def bench(
    folder: Annotated[str | None, typer.Argument(metavar="OUT", help="A converted folder.")] = None,
    dense: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The dense model, where what OUT was made from is not beside it.")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SHAPE",
            help="In place of OUT, layers such as hidden=768,neurons=3072,experts=8,top_k=2,activation=silu,gated=true; again "
            "for more.",
        ),
    ] = None,
    tokens: Annotated[str, typer.Option(metavar="N,N", help="Tokens of a run (rows, without a sequence).")] = "1,16,128,512",
    past: Annotated[str, typer.Option(metavar="N,N", help="Tokens in a decoder's cache before a step of one token.")] = "128",
    threads: Annotated[str, typer.Option(metavar="N,N", help="Threads of ONNX Runtime.")] = "1",
    precision: Annotated[str, typer.Option(metavar="fp32|fp16|int8|int4", help="Precision of the weights of both.")] = "fp32",
    data: Annotated[
        str | None, typer.Option(metavar="FILE|PKG.MOD:CALLABLE", help="Text to read, in place of random tokens.")
    ] = None,
    rounds: Annotated[int, typer.Option(metavar="N", parser=at_least(1), help="Rounds of every cell.")] = 30,
    seconds: Annotated[float, typer.Option(metavar="S", help="Fewer rounds, once a cell took so long.")] = 3.0,
    seed: Annotated[int, typer.Option(metavar="N", parser=at_least(0), help="Seed of inputs and synthetic weights.")] = 0,
    keep: Annotated[str | None, typer.Option(metavar="DIR", help="A new folder to keep the ONNX files in.")] = None,
    plot: Annotated[str | None, typer.Option(metavar="FILE.png|FILE.svg", help="Draw the figures too.")] = None,
    factory: Factory = None,
    example: Example = None,
    allow_pickle: AllowPickle = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Time a converted model, or layers of a shape, against the dense one in ONNX Runtime."""
    screen = Screen(json, quiet, verbose)
    if (folder is None) == (not shape):
        raise UsageError("bench takes either a converted folder or --shape: give one of them")
    with working(screen) as progress:
        from moeify import api
        from moeify.speed.plot import check_plot

        if plot is not None:
            check_plot(Path(plot))
        sizes, on = numbers("--tokens", tokens), numbers("--threads", threads)
        report: SpeedReport
        if folder is None:
            _only_for_folders(dense=dense, data=data, factory=factory, example=example)
            report = api.bench_layers(
                shape or (), tokens=sizes, threads=on, precision=precision, rounds=rounds, seconds=seconds, seed=seed,
                keep=keep, progress=progress,
            )  # fmt: skip
        else:
            report = api.bench(
                folder, dense=dense, tokens=sizes, past=numbers("--past", past), threads=on, precision=precision,
                data=data, rounds=rounds, seconds=seconds, seed=seed, keep=keep, factory=factory, example=example,
                allow_pickle=allow_pickle, progress=progress,
            )  # fmt: skip
        if plot is not None:
            report.plot(Path(plot))
    if json:
        screen.data(report.to_json())
    else:
        screen.line(str(report))


def _only_for_folders(**given: str | None) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"--{name} is for a converted folder, not for --shape: leave it out")
