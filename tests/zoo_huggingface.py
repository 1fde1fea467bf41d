"""Hugging Face architectures with tiny configs: name -> (model class, config, expected sites, way of rewriting)."""

from __future__ import annotations

from typing import Any

from torch import nn

Site = tuple[str, str, str, int, int]

VOCABULARY = 40
_TEXT = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
_LLAMA = dict(_TEXT, num_key_value_heads=1, head_dim=8, max_position_embeddings=64, pad_token_id=0)
_QWEN = {k: v for k, v in _LLAMA.items() if k != "head_dim"}
_BERT = dict(_TEXT, max_position_embeddings=64)
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_ff": 48,
    "d_kv": 8,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
_BART = {
    "vocab_size": VOCABULARY, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
}  # fmt: skip
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_inner": 48,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OPT = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 48,
    "max_position_embeddings": 64, "word_embed_proj_dim": 16,
}  # fmt: skip
_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 8,
    "num_labels": 3,
}


def _layers(pattern: str, kind: str, activation: str, layers: int = 2) -> list[Site]:
    return [(pattern.format(i), kind, activation, 16, 48) for i in range(layers)]


def _two_stacks(encoder: str, decoder: str, kind: str, activation: str) -> list[Site]:
    return _layers(encoder, kind, activation, 1) + _layers(decoder, kind, activation, 1)


#: name -> (model class, config class, config, inputs, sites, way). Inputs: "ids", "both" (encoder and decoder), "pixels".
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any], str, list[Site], str]] = {
    "bert": (
        "BertForSequenceClassification", "BertConfig", _BERT, "ids",
        _layers("bert.encoder.layer.{}", "two-matrix", "gelu"), "identity",
    ),
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config", _GPT2, "ids",
        _layers("transformer.h.{}.mlp", "two-matrix", "gelu-tanh"), "submodule",
    ),
    "opt": (
        "OPTForCausalLM", "OPTConfig", _OPT, "ids",
        _layers("model.decoder.layers.{}", "two-matrix", "relu"), "identity",
    ),
    "llama": (
        "LlamaForCausalLM", "LlamaConfig", _LLAMA, "ids",
        _layers("model.layers.{}.mlp", "gated", "silu"), "submodule",
    ),
    "qwen2": (
        "Qwen2ForCausalLM", "Qwen2Config", _QWEN, "ids",
        _layers("model.layers.{}.mlp", "gated", "silu"), "submodule",
    ),
    "gemma3": (
        "Gemma3ForCausalLM", "Gemma3TextConfig", dict(_LLAMA, sliding_window=8, num_hidden_layers=1), "ids",
        _layers("model.layers.{}.mlp", "gated", "gelu-tanh", 1), "submodule",
    ),
    "phi3": (
        "Phi3ForCausalLM", "Phi3Config", dict(_QWEN, eos_token_id=2), "ids",
        _layers("model.layers.{}.mlp", "gated", "silu"), "submodule",
    ),
    "t5": (
        "T5ForConditionalGeneration", "T5Config", _T5, "both",
        _two_stacks("encoder.block.{}.layer.1.DenseReluDense", "decoder.block.{}.layer.2.DenseReluDense", "two-matrix", "relu"),
        "submodule",
    ),
    "t5-gated": (
        "T5ForConditionalGeneration", "T5Config", dict(_T5, feed_forward_proj="gated-gelu"), "both",
        _two_stacks("encoder.block.{}.layer.1.DenseReluDense", "decoder.block.{}.layer.2.DenseReluDense", "gated", "gelu-tanh"),
        "submodule",
    ),
    "bart": (
        "BartForConditionalGeneration", "BartConfig", _BART, "both",
        _two_stacks("model.encoder.layers.{}", "model.decoder.layers.{}", "two-matrix", "gelu"), "identity",
    ),
    "vit": (
        "ViTForImageClassification", "ViTConfig", _VIT, "pixels",
        _layers("vit.layers.{}.mlp", "two-matrix", "gelu"), "submodule",
    ),
    "albert": (
        "AlbertModel", "AlbertConfig", dict(_BERT, embedding_size=8, num_hidden_layers=3), "ids",
        _layers("encoder.albert_layer_groups.0.albert_layers.0", "two-matrix", "gelu-tanh", 1), "identity",
    ),
    "mixtral": (
        "MixtralForCausalLM", "MixtralConfig",
        dict(_LLAMA, num_hidden_layers=1, num_local_experts=4, num_experts_per_tok=2), "ids", [], "",
    ),
    "qwen2-moe": (
        "Qwen2MoeForCausalLM", "Qwen2MoeConfig",
        dict(
            _QWEN, num_hidden_layers=1, num_experts=4, num_experts_per_tok=2,
            moe_intermediate_size=24, shared_expert_intermediate_size=48,
        ),
        "ids", [], "",
    ),
}  # fmt: skip


def build(name: str) -> nn.Module:
    """The model of that name, in the state that its own initialisation leaves."""
    import transformers

    model_class, config_class, config = ARCHITECTURES[name][:3]
    model: nn.Module = getattr(transformers, model_class)(getattr(transformers, config_class)(**config))
    return model
