"""The inputs of each block of a model, from a walk over the traced dense model: every segment of it runs once a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from moeify.errors import InputError
from moeify.frontend.load_model import load_model
from moeify.ir.model_graph import Batch
from moeify.layers.moe_layer import MoELayer
from moeify.measure.outputs import evaluation_mode
from moeify.splice.eager_host import EagerHost
from moeify.splice.walk import GraphWalk


class BlockInputs:
    """A context manager. Blocks may be asked for in any order; before one that was passed already the walk begins anew.

    dense: the model before conversion, or where it is; it is put into eval mode for the while. memory: in bytes, of the values
    between two blocks, of all batches.
    """

    def __init__(
        self,
        dense: nn.Module | str | Path,
        data: Sequence[Batch],
        memory: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._data, self._memory = data, memory
        self._model = ExitStack()
        if isinstance(dense, nn.Module):
            self._model.enter_context(evaluation_mode(dense))
        self._host = EagerHost(load_model(dense, example=data[0], dtype=dtype, device=str(device)))
        self._sites = {site.path: (number, site) for number, site in enumerate(self._host.find()[0])}
        self._walks, self._at = ExitStack(), -1
        self._walk: GraphWalk | None = None
        self._prefix = "dense"

    @property
    def dense(self) -> nn.Module:
        """The dense model, loaded."""
        return self._host.model

    def through(self, layers: Mapping[str, MoELayer]) -> None:
        """From now on the blocks before the one that is asked for are these layers, as they are by then."""
        self._host.layers = dict(layers)
        self._prefix = "converted"

    def of(self, path: str) -> list[Tensor]:
        """[tokens, hidden] a batch and call, on the CPU, without padding. Raises InputError where there is no such block."""
        if path not in self._sites:
            raise InputError(f"{path}: the dense model has no feed-forward network there; is it what the model was made of?")
        number, site = self._sites[path]
        if self._walk is None or number < self._at:
            self._walks.close()
            self._walk = self._walks.enter_context(self._host.graph_walk(self._data, self._prefix, self._memory))
        self._at = number
        return list(self._walk.inputs(site))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._walks.close()
        self._model.close()
