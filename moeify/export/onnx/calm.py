"""A model as export needs it, and as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

#: Flags of Hugging Face configs and what they are set to. The other ways of running a model's own experts have no ONNX form.
_FLAGS = {"use_cache": False, "_experts_implementation": "batched_mm"}


@contextmanager
def calm(model: nn.Module) -> Iterator[None]:
    """Inside: eval mode, no gradients, no cache unless asked for. Afterwards every module has its own mode and flags again."""
    modes = {module: module.training for module in model.modules()}
    kept = [(config, flag, getattr(config, flag)) for config in _configs(model) for flag in _FLAGS if hasattr(config, flag)]
    try:
        model.eval()
        for config, flag, _ in kept:
            setattr(config, flag, _FLAGS[flag])
        with torch.no_grad():
            yield
    finally:
        for config, flag, value in kept:
            setattr(config, flag, value)
        for module, mode in modes.items():
            module.training = mode


def _configs(model: nn.Module) -> list[Any]:
    """Submodules may hold copies of their own (T5)."""
    found = (getattr(module, "config", None) for module in model.modules())
    return list({id(config): config for config in found if config is not None}.values())
