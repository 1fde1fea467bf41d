"""`moeify convert`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moeify.cli.options import (
    AllowPickle,
    Calibrate,
    Device,
    Example,
    Factory,
    Force,
    Json,
    Quiet,
    Tokens,
    Verbose,
    at_least,
    fraction,
)
from moeify.cli.screen import Screen, percent
from moeify.cli.working import working
from moeify.errors import UsageError

if TYPE_CHECKING:
    from moeify.api import Conversion
    from moeify.pipeline.plan import Plan


def convert(
    model: Annotated[str, typer.Argument(help="The dense model: a Hugging Face folder, or a GGUF, .pt, .pt2 or .onnx file.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="OUT", help="The folder to write; it appears whole or not at all.")
    ] = None,
    recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE.toml", help="What is done: a shipped recipe or a file (see moeify recipes).")
    ] = "emoe",
    experts: Annotated[int | None, typer.Option(metavar="N", parser=at_least(1), help="Routed experts in every layer.")] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", metavar="K", parser=at_least(1), help="Routed experts that one token uses.")
    ] = None,
    active: Annotated[
        float | None,
        typer.Option(metavar="FRACTION", parser=fraction, help="Largest active fraction of each layer, in place of --top-k."),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PASS.OPTION=VALUE", help="Set an option of a pass of the recipe; may be repeated."),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(metavar="GLOB|last-half|every:N", help="Convert these layers only and leave the others dense.")
    ] = None,
    calibrate: Calibrate = None,
    tokens: Tokens = None,
    align: Annotated[
        str | None,
        typer.Option(metavar="minutes=N", help="Train the experts so long towards the dense model, on the calibration data."),
    ] = None,
    align_on: Annotated[
        list[str] | None,
        typer.Option("--align-on", metavar="FILE|PKG.MOD:CALLABLE", help="More data for --align alone; may be repeated."),
    ] = None,
    factory: Factory = None,
    example: Example = None,
    export: Annotated[str, typer.Option(metavar="torch,onnx,hf", help="What the output folder holds.")] = "torch",
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", parser=at_least(0), help="Seed of every random choice; the same seed gives the same model."),
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="fp32|bf16", help="Number type of the weights.")] = "fp32",
    device: Device = "cpu",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done and write nothing.")] = False,
    force: Force = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the same conversion, ended early, after the last layer it finished.")
    ] = False,
    allow_pickle: AllowPickle = False,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", parser=at_least(1), help="Processes that share the work where layers go by the dense model."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="A cluster of Ray to share it, instead: auto, HOST:PORT or ray://HOST:PORT."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Convert a dense model into a Mixture-of-Experts model."""
    screen = Screen(json, quiet, verbose)
    if output is None and not dry_run:
        raise UsageError("no output given: name a folder with --output OUT, or look first with --dry-run")
    with working(screen) as progress:
        from moeify import api
        from moeify.pipeline.recipe import parse_setting
        from moeify.training.alignment import Alignment

        options: dict[str, Any] = {
            "recipe": recipe, "experts": experts, "top_k": top_k, "active": active, "layers": layers,
            "settings": [parse_setting(text) for text in setting or ()], "calibrate": calibrate or None, "tokens": tokens,
            "factory": factory, "example": example, "seed": seed, "dtype": dtype, "device": device,
            "allow_pickle": allow_pickle,
        }  # fmt: skip
        options["export"] = [name.strip() for name in export.split(",")]
        options["align"] = None if align is None else Alignment.parse(align)
        options["align_on"] = align_on or None
        if dry_run:
            planned = api.plan(model, **options)
        else:
            options |= {"force": force, "resume": resume, "progress": progress, "workers": workers, "cluster": cluster}
            done = api.convert(model, output, **options, planned=lambda plan: _show_growth(plan, screen))
    if dry_run:
        _show_plan(planned, screen)
    else:
        if resume:
            taken = f"{done.resumed} layers were taken over from the run before"
            screen.note(taken if done.resumed else "nothing to resume: the conversion was begun anew")
        _show_conversion(done, screen)


def _show_plan(plan: Plan, screen: Screen) -> None:
    if screen.json:
        screen.data(plan.to_json())
        return
    columns = ("path", "kind", "activation", "hidden", "neurons", "experts", "top-k", "rewrite", "active")
    rows = [
        (r.path, r.kind, r.activation, r.hidden, r.neurons, r.experts, r.top_k, r.rewrite, percent(r.active_fraction))
        for r in plan.layers
    ]
    screen.table(columns, rows)
    screen.table(("refused", "reason"), plan.refusals)
    screen.line(
        f"would convert {len(plan.layers)} feed-forward networks, active fraction {percent(plan.active_fraction)},"
        f" peak memory about {plan.peak_memory / 2**20:,.0f} MiB"
    )
    _show_size(plan, screen)
    for note in plan.notes:
        screen.note(note)


def _show_growth(plan: Plan, screen: Screen) -> None:
    """Before anything is computed or written: what a model will take that grows."""
    if plan.grows and not screen.json:
        _show_size(plan, screen)


def _show_size(plan: Plan, screen: Screen) -> None:
    frozen = plan.parameters_after - plan.trained_parameters
    trained = f"the {plan.trained_parameters:,} that are not frozen " if frozen else ""
    screen.line(
        f"parameters {plan.parameters_before:,} -> {plan.parameters_after:,}, active for one token"
        f" {plan.active_parameters:,}; training {trained}with AdamW takes {plan.optimizer_memory / 2**20:,.1f} MiB"
        " besides the weights"
    )


def _show_conversion(done: Conversion, screen: Screen) -> None:
    from moeify.pipeline.layer_nulls import error_table

    report = done.report
    if screen.json:
        times = {"seconds": report.seconds} if screen.verbose else {}
        screen.data({"folder": str(done.folder), "recipe": done.recipe.name, **report.to_json(), **times})
        return
    if report.verdict is not None:
        screen.line(report.verdict)
    figures = list(dict.fromkeys(name for layer in report.layers for name in layer.measured)) if screen.verbose else []
    columns = ("path", "activation", "neurons", "experts", "shared", "router", "top-k", "active", *figures)
    rows = [
        (
            r.path, r.activation, r.neurons, len(r.sizes), r.shared, r.router, r.top_k, percent(r.active_fraction),
            *(r.measured.get(name) for name in figures),
        )
        for r in report.layers
    ]  # fmt: skip
    screen.table(columns, rows)
    if errors := error_table(report.nulls):
        screen.table(errors[0], errors[1:])
    screen.table(("refused", "reason"), report.refusals)
    if screen.verbose:
        screen.table(("pass", "seconds"), [(name, round(value, 3)) for name, value in report.seconds.items()])
    left = f", {len(report.untouched)} left dense" if report.untouched else ""
    screen.line(
        f"converted {len(report.layers)} feed-forward networks{left} with recipe {done.recipe.name},"
        f" active fraction {percent(report.active_fraction)}: {done.folder}"
    )
    for note in report.notes:
        screen.note(note)
