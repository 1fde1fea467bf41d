"""Tokens to fit on, and tokens to judge by."""

from __future__ import annotations

import torch
from torch import Tensor

from moeify.errors import ConversionError
from moeify.ir.feed_forward import FeedForward


def held_out(site: FeedForward, inputs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Nine tenths of the sample [tokens, hidden] to fit on, and one tenth held out.

    The sample is cut into 100 runs of neighbours, and ten runs are drawn: neighbouring tokens resemble each other, so single
    tokens held out would flatter the fit. Raises ConversionError where the sample is too small to be cut.
    """
    tokens = len(inputs)
    if tokens < 2:
        raise ConversionError(f"{site.path}: the calibration sample holds {tokens} tokens; calibrate on more of them")
    runs = min(tokens, 100)
    drawn = torch.randperm(runs, generator=generator)[: max(1, runs // 10)]
    held = torch.isin(torch.arange(tokens) * runs // tokens, drawn)
    return inputs[~held], inputs[held]
