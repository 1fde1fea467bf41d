"""What every model is held to on its way in, whatever it came from."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from moeify.data.mapped_pages import let_go
from moeify.errors import InputError


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def check_finite(model: nn.Module, where: str) -> None:
    """Raises InputError that names the first parameter which holds NaN or infinite values."""
    for name, parameter in model.named_parameters():
        finite = is_finite(parameter.detach())
        let_go((parameter,))
        if not finite:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise InputError(f"{where}: the tensor {name} holds NaN or infinite values (as {kind}); repair or export it again")


def is_finite(tensor: Tensor) -> bool:
    """No NaN and no infinity; takes no memory of the tensor's size."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    low, high = tensor.aminmax() if tensor.element_size() > 1 else tensor.float().aminmax()
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))
