"""The alignment that ends a conversion: with the dense model, on the calibration data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from moeify.api.arguments import Data, Factory, Source, check_files, device_of, dtype_of, open_batches
from moeify.data.data_set import DataSet
from moeify.errors import UsageError
from moeify.ir.model_graph import Batch
from moeify.pipeline.context import Progress
from moeify.pipeline.report import Report
from moeify.splice.eager_host import EagerHost

if TYPE_CHECKING:
    from moeify.training.alignment import Alignment

#: Tokens of the calibration data that are read at most, and so many of more for the alignment: they are held in memory.
#: `tokens` of a conversion is for calibration: what is fitted in closed form needs fewer than what is trained.
_TOKENS = 1 << 18


def check_alignment(how: Alignment | None, calibrate: Data | None, align_on: Data | None) -> None:
    """Raises UsageError for an alignment without data and data without one; InputError for files that are no data."""
    if how is not None and calibrate is None:
        raise UsageError("aligning needs text without labels, or other inputs: give --calibrate too")
    if align_on is not None:
        if how is None:
            raise UsageError("--align-on is more text for an alignment, and there is none: give --align minutes=10 too")
        check_files(align_on)


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


def opened(data: Data, host: EagerHost) -> DataSet:
    """What an alignment reads of the data."""
    return open_batches(data, host.model, host.loaded.tokenizer, host.loaded.example, _TOKENS)


def align_converted(
    host: EagerHost, report: Report, how: Alignment, data: Data, more: DataSet | None, dense: Callable[[Batch], nn.Module], *,
    state: Path | None, progress: Progress,
) -> Report:  # fmt: skip
    """Aligns the host's model with its dense form on the data, and on more; the report says how it went."""
    from moeify.training.align import align

    batches = chain(opened(data, host), more or ())  # in this order: rows of the data that were held out are the same ones
    done = align(host.model, dense(host.loaded.example), batches, how, state=state, progress=progress)
    layers = tuple(replace(layer, threshold=host.layers[layer.path].threshold) for layer in report.layers)
    return replace(report, layers=layers, notes=(*report.notes, str(done)), aligned=done.to_json())
