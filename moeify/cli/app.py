"""All commands under one name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from moeify import __version__
from moeify.cli.bench import bench
from moeify.cli.convert import convert
from moeify.cli.dense import dense
from moeify.cli.evaluate import evaluate
from moeify.cli.export import export
from moeify.cli.import_ import import_
from moeify.cli.inspect import inspect
from moeify.cli.passes import passes
from moeify.cli.recipes import recipes
from moeify.cli.report import report
from moeify.cli.sweep import sweep
from moeify.cli.write import write
from moeify.errors import UsageError

COMMANDS = (convert, inspect, evaluate, bench, sweep, report, write, dense, passes, recipes, export, import_)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"moeify {__version__}")
        raise typer.Exit


def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Turns a trained dense model into a Mixture-of-Experts model."""
    if context.invoked_subcommand is None:
        names = ", ".join(_name(command) for command in COMMANDS)
        raise UsageError(f"no command given: choose one of {names}, or run moeify --help")


def make_app() -> typer.Typer:
    """The application; every command's help is its docstring."""
    app = typer.Typer(
        name="moeify",
        add_completion=False,
        invoke_without_command=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for command in COMMANDS:
        app.command(_name(command))(command)
    return app


def _name(command: Callable[..., None]) -> str:
    """That of its function; `import_` is one that Python has no name for."""
    return command.__name__.rstrip("_")
