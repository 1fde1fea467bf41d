"""Any model type of transformers by name, its config made small by the names of its sizes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

_VOCABULARY = 99
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

#: Value -> the fields that are cut down to it. Configs call one size by many names.
_NAMES = {
    32: "hidden_size d_model n_embd dim embed_dim emb_dim embedding_size word_embed_proj_dim encoder_hidden_size "
    "decoder_hidden_size hidden_dim_size entity_emb_size cross_attention_hidden_size image_size img_size projection_dim "
    "projection_size",
    64: "intermediate_size dff ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff n_inner d_inner dim_feedforward ffn_hidden_size "
    "hidden_dim mlp_dim encoder_intermediate_size decoder_intermediate_size moe_intermediate_size "
    "shared_expert_intermediate_size max_position_embeddings n_positions max_source_positions max_target_positions seq_length",
    2: "num_attention_heads num_heads n_head n_heads encoder_attention_heads decoder_attention_heads num_key_value_heads "
    "attention_heads encoder_num_heads decoder_num_heads decoder_num_attention_heads num_hidden_layers num_layers n_layer "
    "n_layers encoder_layers decoder_layers num_decoder_layers num_encoder_layers layers depth encoder_num_layers "
    "decoder_num_layers decoder_num_hidden_layers encoder_num_hidden_layers",
    _VOCABULARY: "vocab_size src_vocab_size tgt_vocab_size encoder_vocab_size decoder_vocab_size entity_vocab_size",
    16: "head_dim d_kv attention_head_dim v_head_dim",
    8: "patch_size",
    4: "num_experts num_local_experts n_routed_experts",
}  # fmt: skip
_SIZES = {name: size for size, names in _NAMES.items() for name in names.split()}
_WIDTHS = {"hidden_sizes", "embed_dims", "neck_hidden_sizes", "out_channels", "decoder_hidden_sizes", "embed_dim"}
_COUNTS = {"depths", "num_blocks"}

#: What is built of a type: the first of these that it has.
_TASKS = (
    "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "CAUSAL_LM", "IMAGE_CLASSIFICATION", "MASKED_LM", "CTC", "AUDIO_CLASSIFICATION",
    "SEMANTIC_SEGMENTATION", "IMAGE_TEXT_TO_TEXT", "PRETRAINING",
)  # fmt: skip


def build(model_type: str, changes: Mapping[str, Any] = MappingProxyType({})) -> nn.Module:
    """The model, tiny, as its own initialisation leaves it. changes: fields of the config that are set by hand."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type]
    model: nn.Module = _model_class(model_type)(config(**(_small(config()) | dict(changes))))
    return model


def _model_class(model_type: str) -> Any:
    import transformers
    from transformers.models.auto import modeling_auto as auto

    for table in (*(f"MODEL_FOR_{task}_MAPPING_NAMES" for task in _TASKS), "MODEL_MAPPING_NAMES"):
        if model_type in (names := getattr(auto, table)):
            name = names[model_type]
            return getattr(transformers, name if isinstance(name, str) else name[0])
    raise KeyError(model_type)


def _small(config: Any) -> dict[str, Any]:
    """Smaller values for the fields of a config and of the configs in it."""
    import transformers

    found: dict[str, Any] = {}
    for name in config.to_dict():
        value = getattr(config, name, None)
        if isinstance(value, transformers.PreTrainedConfig):
            found[name] = type(value)(**_small(value))
        elif isinstance(value, int) and not isinstance(value, bool):
            if name in _SIZES:
                found[name] = min(value, _SIZES[name])
            elif name.endswith("_token_id") and value >= _VOCABULARY:
                found[name] = _SPECIAL.get(name, 3)
        elif isinstance(value, list | tuple) and value and all(type(item) is int for item in value):
            if name in _WIDTHS:
                found[name] = type(value)(16 * (i + 1) for i in range(len(value)))
            elif name in _COUNTS:
                found[name] = type(value)(1 for _ in value)
            elif name == "image_size":
                found[name] = type(value)(32 for _ in value)
            elif name.endswith("_token_id"):
                found[name] = 2
    return found
