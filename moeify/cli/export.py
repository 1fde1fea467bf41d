"""`moeify export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moeify.cli.options import AllowPickle, Example, Factory, Force, Json, Quiet, Verbose, at_least
from moeify.cli.screen import Screen
from moeify.cli.working import working
from moeify.errors import UsageError

if TYPE_CHECKING:
    from moeify.export.genai.report import GenaiReport
    from moeify.export.hf.report import HfReport
    from moeify.export.onnx.report import OnnxReport


def export(
    folder: Annotated[str, typer.Argument(metavar="OUT", help="A converted folder.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The file (onnx) or folder to write.")],
    to: Annotated[str, typer.Option(metavar="onnx|genai|hf", help="The format to write.")] = "onnx",
    precision: Annotated[
        str, typer.Option(metavar="fp32|fp16|int8|int4", help="Of onnx, genai: how weights are stored.")
    ] = "fp32",
    calibrate: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE|PKG.MOD:CALLABLE", help="Of int8, int4: data to round weights by; may be repeated."),
    ] = None,
    calibration_tokens: Annotated[
        int, typer.Option(metavar="N", parser=at_least(16), help="Tokens of it to read (rows, where it is not text).")
    ] = 4096,
    lowering: Annotated[
        str, typer.Option(metavar="auto|portable|standard|contrib|native", help="What an MoE layer becomes in the file.")
    ] = "auto",
    tokens: Annotated[str, typer.Option(metavar="N,N", help="Tokens of the calls that auto chooses for.")] = "1,128",
    lossy: Annotated[bool, typer.Option("--lossy", help="Of hf: leave out what no stock class holds.")] = False,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Of hf: of a file of weights, such as 4GB.")] = "4GB",
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

        if lossy and to != "hf":
            raise UsageError("--lossy is for --to hf: an ONNX file holds all of a model")
        if max_shard_size != "4GB" and to != "hf":
            raise UsageError("--max-shard-size is for --to hf")
        if precision != "fp32" and to == "hf":
            raise UsageError("--precision is for --to onnx and genai: a folder of hf keeps the weights as they are")
        if calibrate and to == "hf":
            raise UsageError("--calibrate is for --to onnx and genai: a folder of hf keeps the weights as they are")
        given: dict[str, Any] = {"factory": factory, "example": example, "force": force, "allow_pickle": allow_pickle}
        report: OnnxReport | GenaiReport | HfReport
        if to == "hf":
            report = api.export_hf(folder, output, lossy=lossy, max_shard_size=max_shard_size, progress=progress, **given)
        else:
            options: dict[str, Any] = {"precision": precision, "lowering": lowering, "tokens": _counts(tokens)}
            options |= {"calibrate": calibrate or None, "calibration_tokens": calibration_tokens}
            if to == "genai":
                report = api.export_genai(folder, output, progress=progress, **options, **given)
            else:
                report = api.export(folder, output, to=to, progress=progress, **options, **given)
    if json:
        screen.data(report.to_json())
    else:
        screen.line(str(report))


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise UsageError(f"--tokens is {text!r}: give whole numbers with commas between, such as 1,128") from None
