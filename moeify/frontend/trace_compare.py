"""Two lists of outputs compared; errors of others in one line."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Largest difference allowed, relative to the largest output: the graph runs the same kernels as the model.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_HALF_TOLERANCE = 3e-2


def difference(found: list[Any], expected: list[Any]) -> str:
    """What is different, in a few words; empty where nothing is. Tensors on the meta device are compared by shape."""
    ours, theirs = ([leaf for leaf in leaves if isinstance(leaf, Tensor)] for leaves in (found, expected))
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return f"shapes {[list(t.shape) for t in ours]}, not {[list(t.shape) for t in theirs]}"
    for a, b in zip(ours, theirs):
        if a.device.type == "meta" or not a.numel():
            continue
        if not b.is_floating_point():
            if not torch.equal(a, b):
                return "integer outputs are not equal"
            continue
        far = torch.nan_to_num(a.double() - b.double(), 0.0).abs().max().item()
        scale = 1 + torch.nan_to_num(b.double(), 0.0, 0.0, 0.0).abs().max().item()
        if far > _TOLERANCE.get(b.dtype, _HALF_TOLERANCE) * scale or not torch.equal(a.isnan(), b.isnan()):
            return f"largest difference {far:.1e}"
    return ""


def one_line(error: BaseException) -> str:
    """The first line of an error's text that says something, cut at 200 characters."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:200]
