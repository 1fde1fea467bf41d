"""How a worker comes by the model: it reads it itself, once, and makes sure that it is the one that was asked about."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from moeify.errors import ConversionError, InputError, MoeifyError
from moeify.frontend.load_model import load_model
from moeify.frontend.loaded import SourceInfo
from moeify.frontend.traced import Traced
from moeify.ir.model_graph import Batch
from moeify.splice.eager_host import EagerHost

#: The one model that a process holds, by the key of its source.
_opened: dict[str, EagerHost] = {}


@dataclass(frozen=True, eq=False)
class ModelSource:
    """What `load_model` is called with, and what must come of it: plain data.

    path: absolute, the same on every machine. info, graph: the source and the digest of the traced graph that the conversion
    has; versions: its packages'.
    """

    path: Path
    factory: str | None
    example: Batch = field(repr=False)
    dtype: torch.dtype
    allow_pickle: bool
    info: SourceInfo
    graph: str
    versions: Mapping[str, str]

    def opened(self, versions: Mapping[str, str]) -> EagerHost:
        """The model, read and traced at the first call in a process. It computes on one thread from then on, so that sums are
        made in the same order in every worker. versions: of the packages here.

        Raises ConversionError where what is here is another model or other packages, InputError where it cannot be read.
        """
        key = f"{self.path} {self.dtype} {self.graph} {self.info}"
        if key not in _opened:
            _opened.clear()
            torch.set_num_threads(1)
            self._check(versions == self.versions, f"other packages ({_differing(versions, self.versions)})")
            _opened[key] = self._read()
        return _opened[key]

    def _read(self) -> EagerHost:
        try:
            loaded = load_model(
                self.path, factory=self.factory, example=self.example, dtype=self.dtype, allow_pickle=self.allow_pickle
            )
        except MoeifyError as error:
            raise InputError(
                f"a worker on {socket.gethostname()} cannot read the model, which must lie at the same path on every machine: "
                f"{error}"
            ) from error
        self._check(loaded.source == self.info, f"another model at {self.path}")
        host = EagerHost(loaded)
        host.find()
        self._check(graph_digest(host.traced) == self.graph, "another trace of the model")
        return host

    def _check(self, right: bool, found: str) -> None:
        if not right:
            raise ConversionError(f"a worker on {socket.gethostname()} has {found}: results would not be the same everywhere")


def graph_digest(traced: Traced) -> str:
    """Equal for equal graphs, names of nodes and weights included."""
    text = f"{traced.graph.graph} {dict(traced.lifted)} {traced.user_inputs} {traced.dynamic}"
    return hashlib.sha256(text.encode()).hexdigest()


def _differing(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    names = sorted(name for name in {*here, *there} if here.get(name) != there.get(name))
    return ", ".join(f"{name} {here.get(name, 'absent')} instead of {there.get(name, 'absent')}" for name in names)
