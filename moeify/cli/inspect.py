"""`moeify inspect`."""

from __future__ import annotations

from typing import Annotated

import typer

from moeify.cli.options import AllowPickle, Example, Factory, Json, Quiet, Verbose
from moeify.cli.screen import Screen
from moeify.cli.working import working

_HEADS = {
    "dense": "dense model: {} feed-forward networks can be converted",
    "converted": "converted model: {} MoE layers",
    "onnx": "ONNX file: {} MoE layers",
}


def inspect(
    model: Annotated[str, typer.Argument(help="A dense model, a converted folder, or an .onnx file.")],
    factory: Factory = None,
    example: Example = None,
    allow_pickle: AllowPickle = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """List the feed-forward networks or MoE layers of a model, and why others are refused."""
    screen = Screen(json, quiet, verbose)
    with working(screen):
        from moeify import api

        found = api.inspect(model, factory=factory, example=example, allow_pickle=allow_pickle)
    if json:
        screen.data(found.to_json())
        return
    screen.line(_HEADS[found.kind].format(len(found.rows)))
    if found.rows:
        columns = list(found.rows[0])
        screen.table([name.replace("_", "-") for name in columns], [[row[c] for c in columns] for row in found.rows])
    screen.table(("refused", "reason"), [(refusal.path, refusal.reason) for refusal in found.refusals])
    for note in found.notes:
        screen.note(note)
