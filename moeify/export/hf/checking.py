"""The written checkpoint beside the converted model: the same experts, and the same logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moeify.errors import ConversionError
from moeify.export.hf.report import Agreement
from moeify.export.hf.shape import StockShape
from moeify.ir.model_graph import Batch
from moeify.layers.budget import moe_layers
from moeify.measure.outputs import evaluating, main_output, run

#: Difference of logits / the largest one, by the dtype of the weights, where all choices agree.
_BOUNDS = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}

#: At most such a share of choices may be another: scores that are nearly equal.
_FLIPPED = {torch.float32: 0.01, torch.float16: 0.1, torch.bfloat16: 0.1}


def compare(model: nn.Module, folder: Path, example: Batch, shape: StockShape, *, exact: bool) -> Agreement:
    """exact: nothing was left out, so both must agree. Raises ConversionError where they don't, or the folder does not load."""
    from transformers import AutoModelForCausalLM

    parameter = next(model.parameters())
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=parameter.dtype, local_files_only=True).to(parameter.device)
    routers = [module for module in stock.modules() if type(module).__name__.lower().endswith("topkrouter")]
    wanted, ours = _run(model, example, moe_layers(model).values(), lambda layer, inputs, _: layer.route(inputs[0]).chosen)
    given, theirs = _run(stock, example, routers, lambda _, inputs, output: _mask(output[2], shape.experts))
    alike = torch.stack([(a == b).all(-1) for a, b in zip(ours, theirs, strict=True)])  # [layers, tokens]
    rows = wanted.shape[0]
    kept = alike.all(0).view(rows, -1).all(-1)  # sequences in which every choice agrees
    distance = float((wanted - given)[kept].abs().max() / wanted.abs().max()) if kept.any() else None
    found = Agreement(distance, float(alike.float().mean()), alike.shape[1])
    bound, flipped = _BOUNDS[parameter.dtype], _FLIPPED[parameter.dtype]
    if exact and ((distance is not None and not distance <= bound) or found.alike < 1 - flipped):
        raise ConversionError(f"the stock checkpoint is not the converted model: {found}; nothing was written")
    return found


def score_spreads(model: nn.Module, example: Batch) -> dict[str, float]:
    """Of each MoE layer with a router: the largest distance between two scores of one token."""
    layers = {path: layer for path, layer in moe_layers(model).items() if layer.router is not None}
    _, seen = _run(
        model, example, layers.values(), lambda layer, inputs, _: layer.router(inputs[0].reshape(-1, layer.config.hidden))
    )
    return {path: float((scores.amax(-1) - scores.amin(-1)).max()) for path, scores in zip(layers, seen, strict=True)}


def _run(
    model: nn.Module, example: Batch, watched: Iterable[nn.Module], look: Callable[[Any, Any, Any], Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Logits in float32, and what `look` makes of (module, inputs, output) of each watched module, as they are called."""
    seen: list[Tensor] = []
    handles = [module.register_forward_hook(lambda *call: seen.append(look(*call))) for module in watched]
    try:
        with evaluating(model), torch.no_grad():
            return main_output(run(model, example))[1].float(), seen
    finally:
        for handle in handles:
            handle.remove()


def _mask(indices: Tensor, experts: int) -> Tensor:
    """bool [tokens, experts] of indices [tokens, top_k]."""
    return torch.zeros(len(indices), experts, dtype=torch.bool, device=indices.device).scatter_(1, indices, True)
