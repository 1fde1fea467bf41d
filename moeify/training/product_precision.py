"""In which precision matrices are multiplied while a model learns."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from moeify.errors import UsageError

Precision = Literal["auto", "float32", "bfloat16"]
#: Makes a context to multiply in.
Context = Callable[[], AbstractContextManager[object]]


def check_precision(wanted: str) -> None:
    """Raises UsageError for another word."""
    if wanted not in get_args(Precision):
        raise UsageError(f"align.precision is {wanted!r}: choose one of {', '.join(get_args(Precision))}")


def products(wanted: Precision, weight: Tensor) -> Context:
    """Makes contexts in which models with weights like this one multiply in that precision: torch.autocast."""
    device = weight.device.type
    half = wanted == "bfloat16" or (wanted == "auto" and weight.dtype == torch.float32 and quick_bfloat16(device))
    return partial(torch.autocast, device, torch.bfloat16, enabled=half)


def quick_bfloat16(device: str) -> bool:
    """Does a device of that type multiply numbers of bfloat16 faster than of float32?"""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    can = torch.cpu.get_capabilities()
    return device == "cpu" and bool(can.get("avx512_bf16") or can.get("amx_bf16"))
