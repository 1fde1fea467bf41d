"""Small language models and encoders, and conversions of them made by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from moeify.ir.model_graph import Batch
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.layers.moe_layer import MoELayer

VOCABULARY, HIDDEN, NEURONS = 53, 32, 48


def built(make: Any, seed: int = 0) -> nn.Module:
    """The model with weights large enough for its choices to matter; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def llama(seed: int = 0, layers: int = 2) -> nn.Module:
    return built(
        lambda: LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=NEURONS, num_hidden_layers=layers,
                num_attention_heads=2, max_position_embeddings=128,
            )
        ),
        seed,
    )  # fmt: skip


def gpt2(seed: int = 0) -> nn.Module:
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=2, n_head=2, n_inner=NEURONS, n_positions=128)
    return built(lambda: GPT2LMHeadModel(config), seed)


_BERT = BertConfig(
    vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=NEURONS, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=128,
)  # fmt: skip


def bert(seed: int = 0) -> nn.Module:
    return built(lambda: BertModel(_BERT), seed)


def masked_bert(seed: int = 0) -> nn.Module:
    """Gives logits [rows, tokens, vocabulary], but sees the whole row."""
    return built(lambda: BertForMaskedLM(_BERT), seed)


def batches(count: int = 3, rows: int = 2, tokens: int = 12, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(0, VOCABULARY, (rows, tokens), generator=generator)} for _ in range(count)]


def moe_of(mlp: Any, shared: int = 8, sizes: tuple[int, ...] = (10, 10, 10, 10), seed: int = 0, **options: Any) -> MoELayer:
    """A partition of a LlamaMLP at random, with an average-key router unless `router` says otherwise."""
    offsets = tuple(torch.tensor([shared, *sizes]).cumsum(0).tolist())
    assert offsets[-1] == mlp.up_proj.weight.shape[0]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(offsets[-1], generator=generator)
    options = {"router": RouterConfig("average-key"), "top_k": 2, **options}
    layer = MoELayer(MoEConfig(HIDDEN, HIDDEN, "silu", True, offsets, **options))
    with torch.no_grad():
        for name, weight in (("up", mlp.up_proj.weight), ("gate", mlp.gate_proj.weight), ("down", mlp.down_proj.weight.T)):
            getattr(layer, name).copy_(weight[order])
        keys = torch.stack([layer.get_parameter("gate")[a:b].mean(0) for a, b in zip(offsets, offsets[1:])])
        for name, value in layer.state_dict().items():
            if name == "router.weight":
                value.copy_(keys)
            elif name not in ("up", "gate", "down"):
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    return layer.eval()


def converted_llama(seed: int = 0, layers: int = 2, **options: Any) -> nn.Module:
    """`llama(seed)` with its FFNs as MoE layers."""
    model = llama(seed, layers)
    for index in range(layers):
        path = f"model.layers.{index}.mlp"
        model.set_submodule(path, moe_of(model.get_submodule(path), seed=index, **options))
    return model.eval()


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    assert isinstance(batch, dict)
    with torch.no_grad():
        found: Tensor = model(**batch).logits
    return found
