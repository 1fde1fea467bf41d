"""Causal language models: all of them write text."""

from __future__ import annotations

from functools import partial
from typing import Any

from zoo_rows import HIDDEN, NEURONS, TEXT, VOCABULARY, Row, layers

_LLAMA = TEXT | {"num_key_value_heads": 1, "head_dim": 8}
_QWEN = TEXT | {"num_key_value_heads": 1}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": 2, "n_head": 2, "n_inner": NEURONS, "n_positions": 64,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_OPT = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": NEURONS,
    "max_position_embeddings": 64, "word_embed_proj_dim": HIDDEN,
}  # fmt: skip
_FALCON = TEXT | {"ffn_hidden_size": NEURONS, "new_decoder_architecture": False, "alibi": False}
_BLOOM = {"vocab_size": VOCABULARY, "hidden_size": 24, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2}
_MAMBA = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 1, "state_size": 4, "time_step_rank": 4}
_WINDOW = _LLAMA | {"sliding_window": 8}
_QWEN_MOE = _QWEN | {
    "num_hidden_layers": 1, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": NEURONS,
}  # fmt: skip

_row = partial(Row, inputs="ids", way="submodule", text=True)
_gated = partial(layers, "model.layers.{}.mlp", "gated")
_plain = partial(layers, "model.layers.{}.mlp", "two-matrix")


def _wide(pattern: str, activation: str) -> list[tuple[str, str, str, int, int]]:
    """Four times as many neurons as the 24 hidden values: a config that does not say."""
    return [(path, kind, act, 24, 96) for path, kind, act, *_ in layers(pattern, "two-matrix", activation)]


DECODERS = {
    "gpt2": _row("GPT2LMHeadModel", "GPT2Config", _GPT2, sites=layers("transformer.h.{}.mlp", "two-matrix", "gelu-tanh")),
    "gpt-neox": _row(
        "GPTNeoXForCausalLM", "GPTNeoXConfig", TEXT, sites=layers("gpt_neox.layers.{}.mlp", "two-matrix", "gelu"),
    ),
    "gpt-j": _row(
        "GPTJForCausalLM", "GPTJConfig", _GPT2 | {"rotary_dim": 4},
        sites=layers("transformer.h.{}.mlp", "two-matrix", "gelu-tanh"),
    ),
    "opt": _row(
        "OPTForCausalLM", "OPTConfig", _OPT, sites=layers("model.decoder.layers.{}", "two-matrix", "relu"), way="identity",
    ),
    "bloom": _row(
        "BloomForCausalLM", "BloomConfig", _BLOOM, sites=_wide("transformer.h.{}.mlp", "gelu-tanh"), way="identity",
    ),
    "falcon": _row(
        "FalconForCausalLM", "FalconConfig", _FALCON, sites=layers("transformer.h.{}.mlp", "two-matrix", "gelu"),
    ),
    "llama": _row("LlamaForCausalLM", "LlamaConfig", _LLAMA, sites=_gated("silu")),
    "mistral": _row("MistralForCausalLM", "MistralConfig", _WINDOW, sites=_gated("silu")),
    "smollm3": _row("SmolLM3ForCausalLM", "SmolLM3Config", _QWEN, sites=_gated("silu")),
    "qwen2": _row("Qwen2ForCausalLM", "Qwen2Config", _QWEN, sites=_gated("silu")),
    "qwen3": _row("Qwen3ForCausalLM", "Qwen3Config", _LLAMA, sites=_gated("silu")),
    "gemma": _row("GemmaForCausalLM", "GemmaConfig", _LLAMA, sites=_gated("gelu-tanh")),
    "gemma2": _row("Gemma2ForCausalLM", "Gemma2Config", _WINDOW, sites=_gated("gelu-tanh")),
    "gemma3": _row("Gemma3ForCausalLM", "Gemma3TextConfig", _WINDOW | {"num_hidden_layers": 1}, sites=_gated("gelu-tanh", 1)),
    "olmo2": _row("Olmo2ForCausalLM", "Olmo2Config", _QWEN, sites=_gated("silu")),
    "granite": _row("GraniteForCausalLM", "GraniteConfig", _QWEN, sites=_gated("silu")),
    "nemotron": _row("NemotronForCausalLM", "NemotronConfig", _LLAMA, sites=_plain("relu-squared")),
    "starcoder2": _row("Starcoder2ForCausalLM", "Starcoder2Config", _QWEN, sites=_plain("gelu-tanh")),
    "phi": _row("PhiForCausalLM", "PhiConfig", TEXT, sites=_plain("gelu-tanh")),
    "phi3": _row("Phi3ForCausalLM", "Phi3Config", _QWEN, sites=_gated("silu")),
    "mamba": _row("MambaForCausalLM", "MambaConfig", _MAMBA, way=""),
    "mixtral": _row(
        "MixtralForCausalLM", "MixtralConfig",
        _LLAMA | {"num_hidden_layers": 1, "num_local_experts": 4, "num_experts_per_tok": 2}, way="",
    ),
    "qwen2-moe": _row("Qwen2MoeForCausalLM", "Qwen2MoeConfig", _QWEN_MOE, way=""),
}  # fmt: skip
