"""The parameters of a converted model by their part, for optimizers that treat parts differently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from moeify.errors import UsageError
from moeify.layers.moe_layer import MoELayer

Options = Mapping[str, Any]


def parameter_groups(
    model: nn.Module, *, experts: Options | None = None, router: Options | None = None, rest: Options | None = None
) -> list[dict[str, Any]]:
    """Groups for any torch optimizer: every trainable parameter exactly once, tied ones too, in module order.

    router: the parameters of the MoE layers' routers. experts: all others of the MoE layers (shared expert, compensation and
    output bias too), adapters on them included. rest: what stands outside. Each group has its options and the key "part",
    for loggers; a part without parameters is left out.

        torch.optim.AdamW(parameter_groups(model, router={"lr": 1e-3}, rest={"weight_decay": 0.1}), lr=1e-4)

    Raises UsageError for options that hold "params" or "part", and for a model in which nothing is trainable.
    """
    options = {"experts": experts or {}, "router": router or {}, "rest": rest or {}}
    for part, given in options.items():
        if taken := sorted({"params", "part"} & set(given)):
            raise UsageError(f"the options of {part} hold {taken[0]!r}, which parameter_groups fills in: leave it out")
    parts = _parts(model)
    found: dict[str, list[nn.Parameter]] = {part: [] for part in options}
    for parameter in model.parameters():
        if parameter.requires_grad:
            found[parts.get(id(parameter), "rest")].append(parameter)
    if not any(found.values()):
        raise UsageError(f"{type(model).__name__}: no parameter is trainable: set requires_grad on what is to be trained")
    return [{"params": found[part], **options[part], "part": part} for part in options if found[part]]


def _parts(model: nn.Module) -> dict[int, str]:
    """The parts "experts" and "router" by the id of the parameter."""
    parts: dict[int, str] = {}
    for module in model.modules():
        if isinstance(_adapted(module), MoELayer):
            parts |= {id(p): "experts" for p in module.parameters() if id(p) not in parts}
    for module in model.modules():
        if isinstance(module, MoELayer) and module.router is not None:
            parts |= {id(p): "router" for p in module.router.parameters()}
    return parts


def _adapted(module: nn.Module) -> nn.Module:
    """The module within PEFT's wrappers."""
    while (inner := getattr(module, "base_layer", None)) is not None and isinstance(inner, nn.Module):
        module = inner
    return module
