"""The work of a converted model at each place, told by running it eagerly and looking at what its routers choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from moeify.errors import UsageError
from moeify.export.onnx.interface import Interface
from moeify.measure.outputs import evaluating
from moeify.speed.work import Work, metered_work
from moeify.speed.workload import Feeds, Place, Workload


@dataclass(frozen=True)
class WorkPair:
    """Of one run."""

    dense: Work
    converted: Work


def eager_work(
    model: nn.Module, interface: Interface, workload: Workload, places: Sequence[Place], seed: int
) -> dict[Place, WorkPair]:
    """One run a place, on inputs such as those that are timed. Raises UsageError for a place that the model cannot run at."""
    found = {}
    with evaluating(model):
        for place in places:
            try:
                found[place] = _work(model, interface, workload, place, np.random.default_rng((seed, place.tokens)))
            except (RuntimeError, IndexError, ValueError) as error:
                raise UsageError(f"the model cannot run {place} {workload.unit}: {error}; ask for fewer") from error
    return found


def _work(model: nn.Module, interface: Interface, workload: Workload, place: Place, rng: np.random.Generator) -> WorkPair:
    inputs = _inputs(interface, workload, place, rng)
    with metered_work(model) as meter:
        interface.module(*inputs)
    return WorkPair(meter.dense, meter.converted)


def _inputs(interface: Interface, workload: Workload, place: Place, rng: np.random.Generator) -> list[torch.Tensor]:
    """The tensors of the interface; of a decoder with what it has read in its cache."""
    feeds = workload.draw(place.tokens, rng)
    if not workload.cached:
        return [torch.from_numpy(feeds[name]) for name in interface.inputs]
    cache = [t.new_zeros(1, t.shape[1], 0, t.shape[3]) for t in interface.example if t.ndim == 4]
    if place.past is not None:
        cache = list(interface.module(*_cached(interface, workload.draw(place.past, rng), cache))[1:])
    return _cached(interface, feeds, cache)


def _cached(interface: Interface, feeds: Feeds, cache: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    ids, past = torch.from_numpy(feeds["input_ids"]), cache[0].shape[2]
    whole = past + ids.shape[1]
    mask, positions = torch.ones(1, whole, dtype=torch.int64), torch.arange(past, whole)[None]
    named = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return [*(named[name] for name in interface.inputs if name in named), *cache]
