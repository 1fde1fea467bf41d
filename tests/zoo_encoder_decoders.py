"""Encoder-decoders: all of them write text."""

from __future__ import annotations

from typing import Any

from zoo_rows import HIDDEN, NEURONS, VOCABULARY, Row, Site, layers

_T5: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": HIDDEN, "d_ff": NEURONS, "d_kv": 8, "num_layers": 1, "num_heads": 2,
    "decoder_start_token_id": 0,
}  # fmt: skip
_BART: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": HIDDEN, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": NEURONS, "decoder_ffn_dim": NEURONS, "max_position_embeddings": 64,
}  # fmt: skip
_MARIAN = _BART | {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 2, "forced_eos_token_id": None}
_WHISPER = _BART | {
    "num_mel_bins": 8, "max_source_positions": 12, "max_target_positions": 32, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip


def _stacks(encoder: str, decoder: str, kind: str, activation: str) -> list[Site]:
    return layers(encoder, kind, activation, 1) + layers(decoder, kind, activation, 1)


_T5_STACKS = ("encoder.block.{}.layer.1.DenseReluDense", "decoder.block.{}.layer.2.DenseReluDense")
_BART_STACKS = ("model.encoder.layers.{}", "model.decoder.layers.{}", "two-matrix")

ENCODER_DECODERS = {
    "t5": Row(
        "T5ForConditionalGeneration", "T5Config", _T5, "both",
        _stacks(*_T5_STACKS, "two-matrix", "relu"), "submodule", text=True,
    ),
    "t5-gated": Row(
        "T5ForConditionalGeneration", "T5Config", _T5 | {"feed_forward_proj": "gated-gelu"}, "both",
        _stacks(*_T5_STACKS, "gated", "gelu-tanh"), "submodule", text=True,
    ),
    "bart": Row(
        "BartForConditionalGeneration", "BartConfig", _BART, "both", _stacks(*_BART_STACKS, "gelu"), "identity", text=True,
    ),
    "marian": Row("MarianMTModel", "MarianConfig", _MARIAN, "both", _stacks(*_BART_STACKS, "gelu"), "identity", text=True),
    "whisper": Row(
        "WhisperForConditionalGeneration", "WhisperConfig", _WHISPER, "speech", _stacks(*_BART_STACKS, "gelu"), "identity",
        text=True,
    ),
}  # fmt: skip
