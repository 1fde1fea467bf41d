"""A stock checkpoint beside a converted model: the same experts, and the same logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moeify.errors import ConversionError
from moeify.export.hf.report import Agreement
from moeify.frontend.load_quietly import quiet_transformers
from moeify.ir.model_graph import Batch
from moeify.layers.budget import moe_layers
from moeify.measure.outputs import evaluating, main_output, run

#: Difference of logits / the largest one, by the dtype of the weights, where all choices agree.
BOUNDS = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}

#: At most such a share of choices may be another: scores that are nearly equal.
_FLIPPED = {torch.float32: 0.01, torch.float16: 0.1, torch.bfloat16: 0.1}


@dataclass(frozen=True, eq=False)
class Seen:
    """What a stock model did with the example. logits: float32 [sequences, tokens, vocabulary]; of each router inputs: x
    [tokens, hidden]; chosen: bool [tokens, experts]; outputs: [tokens, hidden] of its experts, a shared one included."""

    logits: Tensor
    inputs: list[Tensor]
    chosen: list[Tensor]
    outputs: list[Tensor]


def look(stock: nn.Module, example: Batch) -> Seen:
    """Runs a stock model."""
    routers = [module for module in stock.modules() if type(module).__name__.lower().endswith("topkrouter")]
    blocks = [module for name, module in stock.named_modules() if hasattr(module, "experts") or name.endswith("shared_mlp")]
    outputs: list[list[Tensor]] = []

    def seen(module: Any, inputs: Any, output: Any) -> Any:
        if module in routers:
            outputs.append([])
            return inputs[0], _mask(output[2], module)
        outputs[-1].append(output[0] if isinstance(output, tuple) else output)
        return None

    logits, calls = _run(stock, example, [*routers, *blocks], seen)
    calls = [call for call in calls if call is not None]
    width = calls[0][0].shape[-1]
    summed = [torch.stack(parts).sum(0).reshape(-1, width) for parts in outputs]
    return Seen(logits, [x.reshape(-1, width) for x, _ in calls], [chosen for _, chosen in calls], summed)


def layer_distance(model: nn.Module, seen: Seen) -> float:
    """Of the layers' outputs on the inputs that the stock model's had, where the same experts are chosen: the largest
    difference of a layer, as norms over all tokens, / the norm of its output. Deep models in bfloat16 may have no token
    without another choice somewhere, so that logits say nothing: this does."""
    largest = 0.0
    with evaluating(model), torch.no_grad():
        for layer, x, chosen, output in zip(moe_layers(model).values(), seen.inputs, seen.chosen, seen.outputs, strict=True):
            kept = (layer.route(x).chosen == chosen).all(-1)
            ours, theirs = layer(x)[kept].double(), output[kept].double()
            largest = max(largest, float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30)))
    return largest


def agreement(model: nn.Module, seen: Seen, example: Batch) -> Agreement:
    """Choices are compared on the inputs that the stock model's routers had, logits of tokens before the first other choice."""
    layers = list(moe_layers(model).values())
    local = [(layer.route(x).chosen == theirs).all(-1) for layer, x, theirs in zip(layers, seen.inputs, seen.chosen)]
    logits, ours = _run(model, example, layers, lambda layer, inputs, _: layer.route(inputs[0]).chosen)
    rows = logits.shape[0]
    alike = torch.stack([(a == b).all(-1) for a, b in zip(ours, seen.chosen, strict=True)]).all(0).view(rows, -1)
    kept = alike.long().cumprod(1).bool()  # a token sees those before it
    distance = float((logits - seen.logits)[kept].abs().max() / logits.abs().max()) if kept.any() else None
    return Agreement(distance, float(torch.stack(local).float().mean()), kept.numel())


def compare(model: nn.Module, folder: Path, example: Batch, *, exact: bool) -> Agreement:
    """exact: nothing was left out, so both must agree. Raises ConversionError where they don't, or the folder does not load."""
    parameter = next(model.parameters())
    found = agreement(model, look(load_stock(folder, parameter.dtype).to(parameter.device), example), example)
    if exact:
        check(found, BOUNDS[parameter.dtype], parameter.dtype, "the stock checkpoint is not the converted model")
    return found


def check(found: Agreement, bound: float, dtype: torch.dtype, words: str) -> None:
    """Raises ConversionError, with those words, where too many choices are others, or logits lie further apart."""
    if (found.distance is not None and not found.distance <= bound) or found.alike < 1 - _FLIPPED[dtype]:
        raise ConversionError(f"{words}: {found}; nothing was written")


def load_stock(folder: Path, dtype: torch.dtype) -> Any:
    """The stock model of a folder, in eval mode, on the CPU."""
    with quiet_transformers("a stock checkpoint") as transformers:
        options = {"dtype": dtype, "local_files_only": True, "trust_remote_code": False}
        return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def _run(
    model: nn.Module, example: Batch, watched: Iterable[nn.Module], look: Callable[[Any, Any, Any], Any]
) -> tuple[Tensor, list[Any]]:
    """Logits in float32, and what `look` makes of (module, inputs, output) of each watched module, as they are called."""
    seen: list[Any] = []
    handles = [module.register_forward_hook(lambda *call: seen.append(look(*call))) for module in watched]
    try:
        with evaluating(model), torch.no_grad():
            return main_output(run(model, example))[1].float(), seen
    finally:
        for handle in handles:
            handle.remove()


def _mask(indices: Tensor, router: nn.Module) -> Tensor:
    """bool [tokens, experts] of indices [tokens, top_k]."""
    experts = router.get_parameter("weight").shape[0]
    return torch.zeros(len(indices), experts, dtype=torch.bool, device=indices.device).scatter_(1, indices, True)
