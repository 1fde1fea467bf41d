"""`moeify sweep`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moeify.cli.options import AllowPickle, Device, Example, Factory, Json, Quiet, Tokens, Verbose, at_least, fraction
from moeify.cli.screen import Screen
from moeify.cli.working import working

if TYPE_CHECKING:
    from moeify.api.sweeping import Sweep


def _fractions(text: str) -> list[float]:
    """Numbers above 0 and up to 1 between commas."""
    return [fraction(part.strip()) for part in text.split(",")]


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def sweep(
    model: Annotated[str, typer.Argument(help="The dense model: a Hugging Face folder, a GGUF file, a .pt or .pt2 file.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="The folder of rows.jsonl and the picture.")],
    calibrate: Annotated[
        list[str], typer.Option(metavar="FILE|PKG.MOD:CALLABLE", help="Data that passes may look at; repeated: mixed.")
    ],
    evaluate: Annotated[str, typer.Option(metavar="FILE|PKG.MOD:CALLABLE", help="Other data, to judge on.")],
    recipes: Annotated[
        Any, typer.Option(metavar="NAME,FILE.toml,...", parser=_names, help="The recipes to compare.")
    ] = "best,static,cmoe",
    active: Annotated[
        Any, typer.Option(metavar="F,F,...", parser=_fractions, help="The active fractions to convert to.")
    ] = "0.75,0.5,0.25",
    tokens: Tokens = None,
    evaluate_tokens: Annotated[
        int | None, typer.Option("--evaluate-tokens", metavar="N", parser=at_least(2), help="Tokens to judge on at most.")
    ] = None,
    no_time: Annotated[bool, typer.Option("--no-time", help="Leave out ONNX and its times.")] = False,
    factory: Factory = None,
    example: Example = None,
    device: Device = "cpu",
    allow_pickle: AllowPickle = False,
    seed: Annotated[int | None, typer.Option(metavar="N", parser=at_least(0), help="Seed of every random choice.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare recipes at several budgets: quality, active fraction, time in ONNX Runtime, and one picture."""
    screen = Screen(json, quiet, verbose)
    with working(screen) as progress:
        from moeify.api.sweeping import sweep as run

        found = run(
            model, output, recipes=recipes, active=active, calibrate=calibrate, evaluate=evaluate, tokens=tokens,
            evaluate_tokens=evaluate_tokens, time=not no_time, factory=factory, example=example, device=device,
            allow_pickle=allow_pickle, seed=seed, progress=progress,
        )  # fmt: skip
    if json:
        screen.data({"rows": list(found.rows), "pictures": [str(path) for path in found.pictures]})
    else:
        _show(found, screen)


def _show(found: Sweep, screen: Screen) -> None:
    from moeify.measure.sweep_picture import relative_times

    lengths = list(dict.fromkeys(tokens for row in found.rows for tokens in relative_times(row)))
    head = ("recipe", "asked", "active", "perplexity", "/ dense", "error", *(f"time / dense, {n} tokens" for n in lengths))
    rows = [
        (
            row["recipe"], row["active"],
            *(row.get(name) for name in ("active_fraction", "perplexity", "ratio", "relative_error")),
            *(relative_times(row).get(tokens) for tokens in lengths),
        )
        for row in found.rows
    ]  # fmt: skip
    screen.table(head, rows)
    for row in found.rows:
        said = [row["error"]] if "error" in row else row["verdicts"]
        for text in said:
            screen.note(f"{row['recipe']} at {row['active']:g}: {text}")
    if found.taken_over:
        screen.note(f"{found.taken_over} rows were measured by an earlier run")
    pictures = f" and {' and '.join(path.name for path in found.pictures)}" if found.pictures else ""
    screen.line(f"{len(found.rows)} rows: {found.folder / 'rows.jsonl'}{pictures}")
