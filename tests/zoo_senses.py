"""Models that see and hear."""

from __future__ import annotations

from typing import Any

from zoo_rows import HIDDEN, NEURONS, TEXT, Row, Site, layers

_VIT: dict[str, Any] = {
    "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": NEURONS, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
_DINO = {key: value for key, value in _VIT.items() if key != "intermediate_size"} | {"use_swiglu_ffn": True, "mlp_ratio": 4}
_CLIP_TEXT = TEXT | {"projection_dim": 8}
_CLIP = {"text_config": _CLIP_TEXT, "vision_config": _VIT | {"projection_dim": 8}, "projection_dim": 8}
_WAV2VEC2 = {
    "vocab_size": 20, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": NEURONS,
    "conv_dim": (8, 8), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "apply_spec_augment": False, "layerdrop": 0.0,
}  # fmt: skip
_CONVNEXT = {"patch_size": 4, "num_stages": 2, "hidden_sizes": [12, 24], "depths": [1, 1], "image_size": 16}
_POOL = {
    "hidden_sizes": [HIDDEN, 24], "depths": [1, 1], "num_encoder_blocks": 2, "patch_sizes": [3, 3], "strides": [2, 2],
    "padding": [1, 1], "mlp_ratio": 3.0, "image_size": 16,
}  # fmt: skip
_MOBILE = {"image_size": 64, "width_multiplier": 0.25, "ffn_multiplier": 3}


def _towers(activation: str) -> tuple[list[Site], list[Site]]:
    """Those of the picture and those of the text."""
    text = layers("text_model.encoder.layers.{}.mlp", "two-matrix", activation)
    vision = layers("vision_model.encoder.layers.{}.mlp", "two-matrix", activation)
    return vision, text


_SEEN, _READ = _towers("gelu-tanh")
_CLIP_SEEN, _CLIP_READ = _towers("quick-gelu")
_HEAD = layers("vision_model.head.mlp", "two-matrix", "gelu-tanh", 1)

SENSES = {
    "vit": Row(
        "ViTForImageClassification", "ViTConfig", _VIT, "pixels",
        layers("vit.layers.{}.mlp", "two-matrix", "gelu"), "submodule",
    ),
    "dinov2": Row(
        "Dinov2Model", "Dinov2Config", _DINO, "pixels", layers("encoder.layer.{}.mlp", "gated", "silu"), "submodule",
    ),
    "siglip": Row("SiglipModel", "SiglipConfig", _CLIP, "text and picture", [*_SEEN, *_HEAD, *_READ], "submodule"),
    "clip": Row("CLIPModel", "CLIPConfig", _CLIP, "text and picture", [*_CLIP_SEEN, *_CLIP_READ], "submodule"),
    "wav2vec2": Row(
        "Wav2Vec2ForCTC", "Wav2Vec2Config", _WAV2VEC2, "sound",
        layers("wav2vec2.encoder.layers.{}.feed_forward", "two-matrix", "gelu"), "submodule",
    ),
    "convnext": Row(
        "ConvNextForImageClassification", "ConvNextConfig", _CONVNEXT, "pixels",
        [(f"convnext.encoder.stages.{i}.layers.0", "two-matrix", "gelu", n, 4 * n) for i, n in enumerate((12, 24))],
        "identity",
    ),
    "poolformer": Row(
        "PoolFormerForImageClassification", "PoolFormerConfig", _POOL, "pixels",
        [(f"poolformer.encoder.block.{i}.0.output", "two-matrix", "gelu", n, 3 * n) for i, n in enumerate((HIDDEN, 24))],
        "submodule",
    ),
    "mobilevitv2": Row("MobileViTV2ForImageClassification", "MobileViTV2Config", _MOBILE, "pixels",
        [
            (f"mobilevitv2.encoder.layer.{stage}.transformer.layer.{i}.ffn", "two-matrix", "silu", width, 3 * width)
            for stage, width, blocks in ((2, 32, 2), (3, 48, 4), (4, 64, 3)) for i in range(blocks)
        ],
        "submodule",
    ),
}  # fmt: skip
