"""`moeify evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from moeify.cli.options import AllowPickle, Device, Example, Factory, Json, Quiet, Tokens, Verbose, at_least
from moeify.cli.screen import Screen
from moeify.cli.working import working


def evaluate(
    folder: Annotated[str, typer.Argument(metavar="OUT", help="A converted folder.")],
    data: Annotated[str, typer.Option(metavar="FILE|PKG.MOD:CALLABLE", help="Data that no pass has seen (text, tensors).")],
    dense: Annotated[str | None, typer.Option(metavar="MODEL", help="The dense model to compare with.")] = None,
    nulls: Annotated[
        bool, typer.Option("--nulls", help="Compare with null models too: a static mask, random experts, the best choice.")
    ] = False,
    tokens: Tokens = None,
    factory: Factory = None,
    example: Example = None,
    device: Device = "cpu",
    allow_pickle: AllowPickle = False,
    seed: Annotated[int, typer.Option(metavar="N", parser=at_least(0), help="Seed of the null models.")] = 0,
    record: Annotated[bool, typer.Option("--record", help="Keep what is found in OUT: model cards show it.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure a converted model on data: loss or distance, active fraction, load of the experts."""
    screen = Screen(json, quiet, verbose)
    with working(screen) as progress:
        from moeify import api

        found = api.evaluate(
            folder, data, dense=dense, nulls=nulls, tokens=tokens, factory=factory, example=example, seed=seed,
            device=device, record=record, allow_pickle=allow_pickle, progress=progress,
        )  # fmt: skip
    if json:
        screen.data(found.to_json())
        return
    for verdict in found.verdicts:
        screen.line(verdict)
    head, *scores = found.score_table()
    screen.table(head, scores)
    scored = tuple(f"{score.name}: " for score in found.scores)
    screen.table(("measure", "value"), [row for row in found.rows() if not row[0].startswith(scored)])
    if verbose and (layers := found.layer_table()):
        screen.table(layers[0], layers[1:])
    for note in found.notes:
        screen.note(note)
