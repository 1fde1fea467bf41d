"""The alignment that ends a conversion: with the dense model, on the calibration data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from moeify.api.arguments import Data, Factory, Source, device_of, dtype_of, open_batches
from moeify.errors import UsageError
from moeify.ir.model_graph import Batch
from moeify.pipeline.context import Progress
from moeify.pipeline.report import Report
from moeify.splice.eager_host import EagerHost

if TYPE_CHECKING:
    from moeify.training.alignment import Alignment

#: Tokens of the calibration data that are read at most: they are held in memory. `tokens` of a conversion is for calibration:
#: what is fitted in closed form needs fewer than what is trained.
_TOKENS = 1 << 18


def check_alignment(how: Alignment | None, calibrate: Data | None) -> None:
    """Raises UsageError for an alignment without data."""
    if how is not None and calibrate is None:
        raise UsageError("aligning needs text without labels, or other inputs: give --calibrate too")


def dense_opener(
    model: Source, how: Alignment | None, *, factory: Factory | None, dtype: str, device: str, allow_pickle: bool
) -> Callable[[Batch], nn.Module]:
    """Gives the dense model after the conversion, for an example of its inputs: it is read again, and one in memory, which is
    rewritten in place, is copied now if there is an alignment to come."""
    if isinstance(model, nn.Module):
        kept = model if how is None else copy.deepcopy(model)
        return lambda example: kept

    def open_again(example: Batch) -> nn.Module:
        from moeify.frontend.load_model import load_model

        return load_model(
            model, factory=factory, example=example, dtype=dtype_of(dtype), device=device_of(device), allow_pickle=allow_pickle
        ).model  # fmt: skip

    return open_again


def align_converted(
    host: EagerHost, report: Report, how: Alignment, data: Data, dense: Callable[[Batch], nn.Module], *, state: Path | None,
    progress: Progress,
) -> Report:  # fmt: skip
    """Aligns the host's model with its dense form; the report says how it went."""
    from moeify.training.align import align

    loaded = host.loaded
    batches = open_batches(data, host.model, loaded.tokenizer, loaded.example, _TOKENS)
    done = align(host.model, dense(loaded.example), batches, how, state=state, progress=progress)
    layers = tuple(replace(layer, threshold=host.layers[layer.path].threshold) for layer in report.layers)
    return replace(report, layers=layers, notes=(*report.notes, str(done)), aligned=done.to_json())
