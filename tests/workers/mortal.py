"""A pass that waits, so that a test can kill the worker that runs it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moeify.errors import ConversionError
from moeify.ir.facts import Fact
from moeify.ir.model_graph import ModelGraph
from moeify.pipeline.context import PassContext


@dataclass(frozen=True)
class Wait:
    """At one site waits until it is killed, as often as `times` says; each time it leaves its process's number in a file."""

    folder: str
    times: int
    path: str = "2"

    name: ClassVar[str] = "wait"
    needs: ClassVar[tuple[type[Fact], ...]] = ()
    uses: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    keeps: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = False

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        begun = len(list(Path(self.folder).iterdir()))
        if graph.sites[0].path == self.path and begun < self.times:
            part = Path(self.folder, f"{begun}.part")
            part.write_text(str(os.getpid()))
            part.rename(part.with_suffix(".begun"))
            time.sleep(300)
            raise ConversionError("nobody has killed this worker")
        return False


@dataclass(frozen=True)
class Fail:
    """Fails with a foreign error."""

    name: ClassVar[str] = "fail"
    needs: ClassVar[tuple[type[Fact], ...]] = ()
    uses: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    keeps: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = False

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        raise ZeroDivisionError("division\nby zero")
