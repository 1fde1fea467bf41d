"""How small a router may be made where experts are added up (moeify/export/hf/flat_gates.py): SmolLM2-135M, `emoe`, 4 of 16.

    python benchmarks/router_scale.py

For each bound on the scores: the largest distance of a gate from 1 / top-k, and the share of choices (token, layer) that stay
where an engine chooses by softmax in float32, on the inputs that the converted model's layers have.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

import moeify
import real_models
from moeify.export.hf import flat_gates
from moeify.export.hf.weights import router_weight

TOKENS = 512
BOUNDS = (-20, -12, -11, -10, -9, -8, -7)


def inputs(model: torch.nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """What each MoE layer reads, [tokens, hidden], by path."""
    found: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_hook(lambda _, given, __, path=path: found.update({path: given[0].flatten(0, -2)}))
        for path, layer in moeify.moe_layers(model).items()
    ]
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        moeify.convert(real_models.smollm2(), Path(folder) / "out", recipe="emoe", experts=16, top_k=4)
        model = moeify.load(Path(folder) / "out")
        tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "out" / "source")
    text = real_models.technical_text().read_text("utf-8")[20_000:40_000]
    read = inputs(model, torch.tensor(tokenizer(text).input_ids[:TOKENS])[None])
    print("| bound | largest distance of a gate | same experts by softmax |\n| --- | --- | --- |")
    for power in BOUNDS:
        flat_gates.FLAT = 2.0**power
        kept, off = [], 0.0
        for path, layer in moeify.moe_layers(model).items():
            norm = model.get_parameter(path.replace(".mlp", ".post_attention_layernorm.weight"))
            weight = router_weight(layer)
            values, chosen = (read[path] @ (weight * flat_gates.router_scale(weight, norm)).T).softmax(-1).topk(4)
            mask = torch.zeros(len(chosen), 16, dtype=torch.bool).scatter_(1, chosen, True)
            kept.append((mask == layer.route(read[path]).chosen).all(-1).float().mean())
            off = max(off, float((4 * values / values.sum(-1, keepdim=True) - 1).abs().max()))
        print(f"| 2^{power} | {off:.1e} | {float(torch.stack(kept).mean()):.2%} |")


if __name__ == "__main__":
    main()
