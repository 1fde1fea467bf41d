"""`moeify dense`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from moeify.cli.options import AllowPickle, Device, Example, Factory, Force, Json, Quiet, Tokens, Verbose, at_least
from moeify.cli.screen import Screen
from moeify.cli.working import working
from moeify.errors import UsageError

if TYPE_CHECKING:
    from moeify.api import Dense
    from moeify.layers.dense_ffn import Gathering


def dense(
    folder: Annotated[str, typer.Argument(metavar="OUT", help="A converted folder.")],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DENSE", help="The Hugging Face folder or .safetensors file to write.")
    ],
    by: Annotated[
        str, typer.Option(metavar="concatenate|mean|svd", help="How the experts of a layer become one network.")
    ] = "concatenate",
    rank: Annotated[
        int | None, typer.Option(metavar="N", parser=at_least(1), help="Singular values that svd keeps of each copy.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="FILE|PKG.MOD:CALLABLE", help="Data to measure distances on (text, tensors).")
    ] = None,
    tokens: Tokens = None,
    factory: Factory = None,
    example: Example = None,
    device: Device = "cpu",
    force: Force = False,
    allow_pickle: AllowPickle = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a converted model dense again."""
    screen = Screen(json, quiet, verbose)
    with working(screen) as progress:
        from moeify import api

        found = api.to_dense(
            folder, output, by=_strategy(by, rank), data=data, tokens=tokens, factory=factory, example=example, device=device,
            force=force, allow_pickle=allow_pickle, progress=progress,
        )  # fmt: skip
    if json:
        screen.data(found.to_json())
    else:
        _show(found, screen)


def _strategy(by: str, rank: int | None) -> str | Gathering:
    if rank is None:
        return by
    if by != "svd":
        raise UsageError(f"--rank {rank} is for --by svd, not for --by {by}: leave it out")
    from moeify.layers.dense_ffn import SVD

    return SVD(rank)


def _show(found: Dense, screen: Screen) -> None:
    columns = ("path", "experts", "equals", "distance of weights", "distance of outputs")
    rows = [
        (layer.path, layer.experts, layer.equals or "an approximation", layer.weight_distance, layer.output_distance)
        for layer in found.layers
    ]
    screen.table(columns, rows)
    if found.divergence is not None:
        screen.line(
            f"{found.divergence.output} of the dense model: {found.divergence.relative_error:.4g} away from the converted one"
        )
    screen.line(f"{len(found.layers)} layers are dense again, by {found.by}: {found.output}")
