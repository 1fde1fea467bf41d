"""Tiny decoders with FFNs that matter to their outputs, converted in ways that stock classes hold and do not hold."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

import moeify
from moeify.api.conversion import Conversion
from zoo_huggingface import ARCHITECTURES

#: Experts beside a shared one of as many neurons as one of them; chosen by what they add on data.
SHARED = """
[[pass]]
name = "find-feed-forward"

[[pass]]
name = "each-layer"
pass = [
    { name = "calibrate" },
    { name = "cluster-neurons", experts = 3, shared = 0.25, shared_by = "contribution" },
    { name = "split-experts" },
    { name = "insert-router", top_k = 2 },
]
"""


def ids() -> Tensor:
    """int64 [sequences, tokens]."""
    return torch.randint(0, 30, (3, 10), generator=torch.Generator().manual_seed(0))


def decoder(name: str, **config: Any) -> nn.Module:
    """The zoo's model of that name; its FFNs twelve times as strong, so that a wrong expert shows."""
    row = ARCHITECTURES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = getattr(transformers, row.model)(getattr(transformers, row.config)(**(dict(row.sizes) | config)))
    for place, parameter in model.named_parameters():
        if ".mlp." in place:
            parameter.data.mul_(12)
    return model


def converted(name: str, recipe: Any, config: dict[str, Any] | None = None, **options: Any) -> Conversion:
    return moeify.convert(decoder(name, **(config or {})), recipe=recipe, example=(ids(),), **options)
