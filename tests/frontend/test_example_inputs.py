"""Example inputs by a model's config: right for one forward, the same every time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moeify.errors import InputError
from moeify.frontend.example_inputs import example_inputs

_TEXT = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
_VISION = dict(_TEXT, image_size=16, patch_size=8)
_SEQ2SEQ = {
    "vocab_size": 60, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": 2, "decoder_start_token_id": 0,
}  # fmt: skip
_PAIR = {"text_config": dict(_TEXT, bos_token_id=1, eos_token_id=2), "vision_config": _VISION, "projection_dim": 8}
_CONVOLUTIONS = {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}

#: class, config class, config, the inputs' shapes
_BOTH: dict[str, tuple[int, ...]] = {"input_ids": (2, 16), "attention_mask": (2, 16), "decoder_input_ids": (2, 16)}
MODELS: list[tuple[str, str, dict[str, Any], dict[str, tuple[int, ...]]]] = [
    ("LlamaForCausalLM", "LlamaConfig", _TEXT, {"input_ids": (2, 16)}),
    ("LlamaModel", "LlamaConfig", _TEXT, {"input_ids": (2, 16)}),
    ("GPT2LMHeadModel", "GPT2Config", {"vocab_size": 60, "n_embd": 16, "n_layer": 1, "n_head": 2}, {"input_ids": (2, 16)}),
    ("BertModel", "BertConfig", _TEXT, {"input_ids": (2, 16), "attention_mask": (2, 16)}),
    (
        "RobertaModel",
        "RobertaConfig",
        dict(_TEXT, max_position_embeddings=12),
        {"input_ids": (2, 8), "attention_mask": (2, 8)},
    ),
    ("XLNetModel", "XLNetConfig", {"vocab_size": 60, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32}, {}),
    ("BartModel", "BartConfig", _SEQ2SEQ, _BOTH),
    ("BartForSequenceClassification", "BartConfig", _SEQ2SEQ, _BOTH),
    ("ViTModel", "ViTConfig", _VISION, {"pixel_values": (2, 3, 16, 16)}),
    ("ViTModel", "ViTConfig", dict(_VISION, num_channels=1), {"pixel_values": (2, 1, 16, 16)}),
    ("VideoMAEModel", "VideoMAEConfig", dict(_VISION, num_frames=4), {"pixel_values": (2, 4, 3, 16, 16)}),
    (
        "CLIPModel",
        "CLIPConfig",
        _PAIR,
        {"pixel_values": (2, 3, 16, 16), "input_ids": (2, 16), "attention_mask": (2, 16)},
    ),
    (
        "WhisperModel",
        "WhisperConfig",
        dict(_SEQ2SEQ, num_mel_bins=8, max_source_positions=20),
        {"input_features": (2, 8, 40), "decoder_input_ids": (2, 16)},
    ),
    ("Wav2Vec2Model", "Wav2Vec2Config", _TEXT | _CONVOLUTIONS, {"input_values": (2, 6400)}),
    ("ASTModel", "ASTConfig", dict(_TEXT, num_mel_bins=16, max_length=40), {"input_values": (2, 40, 16)}),
]


@pytest.mark.parametrize(("name", "config_name", "options", "shapes"), MODELS)
def test_the_model_runs_on_what_its_config_tells(
    name: str, config_name: str, options: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> None:
    import transformers

    model = getattr(transformers, name)(getattr(transformers, config_name)(**options)).eval()
    batch = example_inputs(model)
    assert isinstance(batch, dict)
    assert not shapes or {key: tuple(value.shape) for key, value in batch.items()} == shapes
    with torch.no_grad():
        output = model(**batch)
    assert all(bool(value.isfinite().all()) for value in output.values() if isinstance(value, Tensor))
    again = example_inputs(model)
    assert isinstance(again, dict)
    assert all(torch.equal(value, again[key]) for key, value in batch.items())


def test_ids_are_no_special_tokens_and_sizes_can_be_asked_for() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    class Special:
        all_special_ids = tuple(range(5, 60))

    model = LlamaForCausalLM(LlamaConfig(**_TEXT, pad_token_id=0, bos_token_id=1, eos_token_id=[2]))
    batch = example_inputs(model, Special(), batch=3, sequence=50)
    assert isinstance(batch, dict)
    assert batch["input_ids"].shape == (3, 50)
    assert set(batch["input_ids"].flatten().tolist()) == {3, 4}


def test_numbers_come_in_the_dtype_of_the_model() -> None:
    from transformers import ViTConfig, ViTModel

    batch = example_inputs(ViTModel(ViTConfig(**_VISION)).to(torch.bfloat16))
    assert isinstance(batch, dict)
    assert batch["pixel_values"].dtype == torch.bfloat16


def test_a_model_that_does_not_tell_is_one_line() -> None:
    with pytest.raises(InputError, match=r"the inputs of Linear are not known.*--example"):
        example_inputs(nn.Linear(2, 2))
