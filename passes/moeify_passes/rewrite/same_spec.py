"""Whether a rewrite would change anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def same_spec(a: Any, b: Any) -> bool:
    """Are two specs equal, tensor by tensor and bit by bit? Looks into tuples, mappings and dataclasses."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(same_spec(x, y) for x, y in zip(a, b))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same_spec(a[key], b[key]) for key in a)
    if is_dataclass(a):
        return all(same_spec(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return bool(a == b)
