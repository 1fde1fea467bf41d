"""Which calibration tokens a layer is judged by: some that no pass has looked at, if the data have any."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from moeify.ir.facts import CalibrationData
from moeify.measure.even_sample import EvenSample
from moeify.measure.layer_errors import LayerSample
from moeify.pipeline.contract import Pass

#: Bounds of the tokens that nulls are fitted on, and that layers are judged by.
_FIT, _HELD = (1024, 2048), (256, 1024)


def calibration_tokens(passes: Iterable[Pass]) -> int | None:
    """How many of the leading calibration tokens passes look at; None where no pass takes calibration data."""
    wanted = (step for step in passes if CalibrationData in step.needs)
    return max((tokens for step in wanted if isinstance(tokens := getattr(step, "tokens", None), int)), default=None)


def judging_tokens(calibration: int | None) -> int:
    """How many tokens beyond those are to be read, so that layers can be judged: few enough to cost little."""
    return min(max((calibration or 0) // 32, _HELD[0]), _HELD[1]) + (_FIT[0] if calibration is None else 0)


def layer_sample(inputs: Iterable[Tensor], calibration: int | None) -> LayerSample | None:
    """A sample of a layer's inputs, [tokens, hidden] a batch; None of a stream of fewer than two tokens.

    calibration: passes look at so many of the leading tokens. An even choice of those is there to fit nulls on, the next few
    hundred to judge by; where none come after them, the end of that choice is, and `held_out` says so.
    """
    known = _FIT[0] if calibration is None else calibration
    fit, held, wanted, seen = EvenSample(min(max(known // 8, _FIT[0]), _FIT[1])), list[Tensor](), judging_tokens(known), 0
    for batch in inputs:
        inner = max(known - seen, 0)
        fit.add(batch[:inner])
        held.append(batch[inner : inner + wanted - sum(map(len, held))].detach().float().cpu())
        seen += len(batch)
        if sum(map(len, held)) >= wanted:
            break
    rows, judged = fit.rows(), sum(map(len, held))
    if judged and len(rows):
        return LayerSample(rows, torch.cat(held), held_out=True)
    rows = rows if len(rows) else torch.cat(held) if held else rows
    last = max(len(rows) // 4, 1)
    return None if len(rows) < 2 else LayerSample(rows[:-last], rows[-last:], held_out=calibration is None)
