"""What a pass is: a frozen dataclass whose fields are its options, with one method."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from moeify.ir.facts import Fact
from moeify.ir.model_graph import ModelGraph
from moeify.pipeline.context import PassContext


@runtime_checkable
class Pass(Protocol):
    """The contract. `needs`, `gives` and the like may be class variables, or properties where options decide.

    name: kebab-case verb phrase, the file's name. needs: facts that must be there; uses: facts taken where they are
    there. gives: facts it leaves. keeps: facts that stay true after a rewrite (others are dropped). rewrites: may
    it change specs?
    """

    @property
    def name(self) -> str: ...
    @property
    def needs(self) -> tuple[type[Fact], ...]: ...
    @property
    def uses(self) -> tuple[type[Fact], ...]: ...
    @property
    def gives(self) -> tuple[type[Fact], ...]: ...
    @property
    def keeps(self) -> tuple[type[Fact], ...]: ...
    @property
    def rewrites(self) -> bool: ...

    def run(self, graph: ModelGraph, context: PassContext) -> bool:
        """Works on `graph.sites`. Returns whether a spec changed."""
        ...
